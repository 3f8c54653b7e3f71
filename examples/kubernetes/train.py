"""Makes digits/: two small classifiers of handwritten digits and a request, so that a quick start needs no downloads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

FOLDER = Path(__file__).parent / "digits"
BRIGHTEST = 16
HIDDEN = 24


def main() -> None:
    """Train on the images that ship with scikit-learn, and write the files."""
    images, digits = load_digits(return_X_y=True)
    train, test, wanted, right = train_test_split(images / BRIGHTEST, digits, random_state=0)
    linear = LogisticRegression(max_iter=1000).fit(train, wanted)
    mlp = MLPClassifier((HIDDEN,), max_iter=1000, random_state=0).fit(train, wanted)
    print("linear", linear.score(test, right), "mlp", mlp.score(test, right))
    write("linear", [(linear.coef_.T, linear.intercept_)])
    write("mlp", list(zip(mlp.coefs_, mlp.intercepts_, strict=True)))
    request = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, test.shape[1]],
                "datatype": "FP32",
                "data": test[0].tolist(),
            }
        ]
    }
    (FOLDER / "request.json").write_text(json.dumps(request) + "\n")
    print("the request is of a", right[0])


def write(name: str, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Fully connected layers with ReLU between them and a softmax at the end."""
    nodes, constants, last = [], [], "image"
    for number, (weights, bias) in enumerate(layers):
        w, b, product, total = (f"{each}{number}" for each in ("w", "b", "product", "total"))
        constants += [
            numpy_helper.from_array(weights.astype(np.float32), w),
            numpy_helper.from_array(bias.astype(np.float32), b),
        ]
        nodes += [
            helper.make_node("MatMul", [last, w], [product]),
            helper.make_node("Add", [product, b], [total]),
        ]
        last = total
        if number < len(layers) - 1:
            last = f"active{number}"
            nodes.append(helper.make_node("Relu", [total], [last]))
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["images", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["images", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, FOLDER / f"{name}.onnx")


if __name__ == "__main__":
    main()
