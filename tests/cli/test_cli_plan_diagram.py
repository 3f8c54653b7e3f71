"""`tessera plan --diagram`: the file that is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tessera_cli.diagram_page import MOST_SERVICES, save
from tessera_core.plan import Plan, Refusal, ServicePlan, Why, plan, state_from_dict
from tessera_core.plan.diagram import colours, diagram

SVG = "{http://www.w3.org/2000/svg}"


def test_an_svg_is_the_picture_of_the_plan(tessera, tmp_path: Path, state_file: Path) -> None:
    result = tessera("plan", "-f", state_file, "--diagram", "plan.svg")
    assert result.returncode == 0, result.stderr
    state = state_from_dict(yaml.safe_load(state_file.read_text()))
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8") == diagram(plan(state), state)
    assert result.stdout == tessera("plan", "-f", state_file).stdout


def test_every_instance_of_the_plan_is_in_the_picture(tessera, tmp_path, state_file) -> None:
    result = tessera("plan", "-f", state_file, "--diagram", "plan.svg", "-o", "json")
    picture = ElementTree.parse(tmp_path / "plan.svg")
    titles = {(each.text or "").partition(":")[0] for each in picture.iter(f"{SVG}title")}
    for device in json.loads(result.stdout)["devices"]:
        for each in device["instances"]:
            place = f"{device['node']}/{device['uuid']} {each['slice']}"
            assert f"{each['service']}/{each['member']} on {place}" in titles


def test_the_page_has_summary_picture_and_services(tessera, tmp_path, state_file: Path) -> None:
    result = tessera("plan", "-f", state_file, "--diagram", "plan.html", "-o", "json")
    found = json.loads(result.stdout)
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert f"<title>Plan {found['name']}</title>" in page
    assert f"<dt>Cost per hour</dt><dd>{found['cost']:g}</dd>" in page
    assert f"<dt>Lower bound</dt><dd>{found['lowerBound']:g}</dd>" in page
    assert f"<dt>Gap</dt><dd>{found['gapPercent']:.3g} %</dd>" in page
    for each in found["services"]:
        row = next(line for line in page.splitlines() if f">{each['service']}</th>" in line)
        assert f"background:{colours(each['service'])[1]}" in row
        assert f"p{each['percentile']:g} {each['latencyMs']:.3g} ms" in row
    (picture,) = re.findall(r"<svg.*</svg>", page, re.DOTALL)
    assert ElementTree.fromstring(picture).get("role") == "img"
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=", page)


def test_the_page_tells_what_is_short_or_refused_and_stays_bounded(tmp_path: Path) -> None:
    refusal = Refusal(Why.INSUFFICIENT_CAPACITY, "full")
    services = tuple(
        ServicePlan(f"s.x{index:04}", 1.0, 1.0, 1.0, 2.0, 99.0, short=refusal)
        for index in range(MOST_SERVICES + 7)
    )
    refused = tuple((f"r.x{index:04}", "m", refusal) for index in range(MOST_SERVICES + 9))
    made = Plan("plan-1", (), services, refused, (), 0.0, 0.0, truncated=True)
    save(tmp_path / "p.html", made, state_from_dict({}))
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<td>InsufficientCapacity</td>") == MOST_SERVICES
    assert page.count("<li>r.x") == MOST_SERVICES
    assert "<p>and 7 more</p>" in page
    assert "<p>and 9 more</p>" in page
    assert "the budget ended the search" in page


def test_the_picture_is_drawn_although_something_is_refused(tessera, tmp_path, edited) -> None:
    def no_profiles(state: dict) -> None:
        state["profiles"] = []
        for each in state["services"]:
            for member in each["spec"]["members"]:
                member.pop("profileRef")

    result = tessera("plan", "-f", edited(no_profiles), "--diagram", "plan.html")
    assert result.returncode == 1
    assert "<li>vision.quality/resnet: NoProfile</li>" in (tmp_path / "plan.html").read_text()


def test_with_what_if_the_edited_state_is_drawn(tessera, tmp_path: Path, state_file: Path) -> None:
    edit = ("--what-if", "node-lost=gpu-1")
    tessera("plan", "-f", state_file, "--diagram", "plan.svg", *edit)
    picture = ElementTree.parse(tmp_path / "plan.svg")
    assert "gpu-1" not in "".join(each.text or "" for each in picture.iter())


@pytest.mark.parametrize("name", ["plan.png", "plan", ".svg", "plan.svg.gz"])
def test_a_file_of_another_kind_is_wrong_usage(tessera, state_file: Path, name: str) -> None:
    result = tessera("plan", "-f", state_file, "--diagram", name)
    assert result.returncode == 2
    allowed = "a file name that ends in .svg or .html"
    assert f"--diagram: found {name!r}, allowed: {allowed}" in result.stderr


def test_a_file_that_cannot_be_written_says_why(tessera, tmp_path, state_file: Path) -> None:
    (tmp_path / "taken.svg").mkdir()
    for name, why in (("none/x.svg", "No such file or directory"), ("taken.svg", "Is a directory")):
        result = tessera("plan", "-f", state_file, "--diagram", name)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr == f"tessera plan: --diagram {name}: {why}\n"
