"""One node: containerd, kubelet and kube-proxy, with folders, cores and a network of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from e2e.native import cleaning
from e2e.native.cgroups import Cgroup
from e2e.native.control_plane import Access
from e2e.native.network import Network, inside
from e2e.native.node_files import GPU_RUNTIME, Place, files
from e2e.native.processes import Process, run

_READY_S = 60.0
_STOP_S = 10.0
_IMPORT_S = 300.0
# Connections on which packets vanish are given up after some seconds instead of some minutes.
_QUICK_LOSS = {"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "5", "HTTP2_PING_TIMEOUT_SECONDS": "3"}


class Machine:
    """Node ``number`` of a cluster. Every program of it can be ended and started again."""

    def __init__(
        self, binaries: Path, place: Place, network: Network, number: int, api_port: int
    ) -> None:
        self.place = place
        self._binaries = binaries
        self._network, self._number, self._api_port = network, number, api_port
        self._group = Cgroup(place.cgroup)
        self._system = Cgroup(f"{place.cgroup}/system")
        self._containerd: Process | None = None
        self._kubelet: Process | None = None
        self._proxy: Process | None = None
        self._cut_off = False

    def start(self, pause: Path, kubelet: Access, proxy: Access) -> None:
        """Returns when the kubelet was started; the node is Ready some seconds later."""
        folder = self.place.folder
        for path, text in files(self.place, kubelet.ca).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / GPU_RUNTIME).chmod(0o755)
        kubelet.kubeconfig(folder / "kubelet.kubeconfig")
        proxy.kubeconfig(folder / "kube-proxy.kubeconfig")
        self._group.create()
        self._system.create()
        self._boot(pause)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll ``ready`` while the kubelet runs; raises RuntimeError with the end of its log otherwise."""
        if self._kubelet is None:
            raise RuntimeError(f"the kubelet of {self.place.name} does not run")
        self._kubelet.wait_until(ready, timeout_s)

    def load_image(self, archive: Path) -> None:
        """Import every image of an archive in the format of `docker save` or of OCI."""
        run(*self._ctr(), "images", "import", archive, timeout_s=_IMPORT_S)

    def signal_container(self, identifier: str, name: str) -> None:
        """Send SIGKILL, SIGTERM, … to the first process of ``containerd://…``."""
        run(*self._ctr(), "tasks", "kill", "--signal", name, identifier.rpartition("/")[2])

    def start_kubelet(self) -> None:
        """Nothing happens where it runs."""
        if self._kubelet is None:
            folder = self.place.folder
            self._kubelet = self._process(
                "kubelet",
                self._binaries / "kubelet",
                f"--config={folder / 'kubelet.yaml'}",
                f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
                f"--root-dir={folder / 'kubelet'}",
                f"--cert-dir={folder / 'kubelet-certificates'}",
                f"--hostname-override={self.place.name}",
                f"--node-ip={self.place.address}",
            )

    def stop_kubelet(self) -> None:
        """Containers go on; nothing happens where it does not run."""
        if self._kubelet is not None:
            self._kubelet.stop(_STOP_S)
            self._kubelet = None

    def cut_off_from_api(self) -> None:
        """Nothing of the node and its pods reaches the API server, nor the other way; all else goes on."""
        if not self._cut_off:
            self._network.cut(self._number, self._api_port, off=True)
            self._cut_off = True

    def reconnect(self) -> None:
        """Undo ``cut_off_from_api``."""
        if self._cut_off:
            self._network.cut(self._number, self._api_port, off=False)
            self._cut_off = False

    def kill(self) -> None:
        """A power failure: every process ends at once, and the network does not answer for the node any more."""
        self._network.power(self._number, on=False)
        self.end()

    def revive(self) -> None:
        """Start after ``kill`` with the disk as it was: images are there, containers and mounts are not."""
        cleaning.forget_containers(self.place.folder)
        self._network.power(self._number, on=True)
        self._boot()

    def end(self) -> None:
        """Returns when no process is left."""
        self._group.kill()
        for process in (self._kubelet, self._proxy, self._containerd):
            if process is not None:
                process.stop(_STOP_S)
        self._kubelet = self._proxy = self._containerd = None

    def _boot(self, *images: Path) -> None:
        self._containerd = self._process(
            "containerd", "containerd", f"--config={self.place.folder / 'containerd.toml'}"
        )
        self._containerd.wait_until(self._lists_images, _READY_S)
        for image in images:
            self.load_image(image)
        self.start_kubelet()
        configuration = self.place.folder / "kube-proxy.yaml"
        self._proxy = self._process(
            "kube-proxy", self._binaries / "kube-proxy", f"--config={configuration}"
        )

    def _lists_images(self) -> bool:
        try:
            run(*self._ctr(), "images", "list")
        except RuntimeError:
            return False
        return True

    def _process(self, name: str, *command: str | Path) -> Process:
        """In the network and the cgroup of the node."""
        log = self.place.folder / f"{name}.log"
        whole = [*inside(self.place.namespace), *command]
        return Process(f"{name} of {self.place.name}", whole, log, _QUICK_LOSS, self._system)

    def _ctr(self) -> tuple[str | Path, ...]:
        return ("ctr", "--address", self.place.socket, "--namespace", "k8s.io")
