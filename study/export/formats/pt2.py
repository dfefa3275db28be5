"""torch.export's archive, which torch loads without the model's code."""

from pathlib import Path

import torch

from kdstudy.errors import UserError
from kdstudy.export.formats import snippets
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.export.formats.program import cannot, labels, quiet, trace

FILE = "model.pt2"


class Pt2(Format):
    name = "pt2"

    def write(self, deployable: Deployable, folder: Path) -> list[str]:
        program = trace(deployable, self.name)
        try:
            with quiet():
                torch.export.save(program, folder / FILE, extra_files=labels(deployable))
        except Exception as error:  # of many kinds
            raise cannot(deployable, self.name, error) from error
        return [FILE]

    def usage(self, folder: str, deployable: Deployable) -> list[str]:
        return [
            "import json", "import numpy as np", "import torch", "from PIL import Image",
            'extra = {"class_names": ""}  # torch fills it in',
            f"model = torch.export.load({snippets.text(f'{folder}/{FILE}')}, extra_files=extra).module()",
            *snippets.images(deployable, "torch", outside=not deployable.resizes),
            "logits = model(images).detach().numpy()[0]",
            *snippets.best(deployable, 'json.loads(extra["class_names"])'),
        ]

    def check_received(self, folder: Path, function: str | None, trust: bool) -> None:
        """torch.export.load unpickles what the archive says is pickled, and evaluates its expressions of sizes."""
        if not trust:
            raise UserError(f"{folder / FILE} could run code when torch.export.load reads it; if you or somebody whom "
                            "you trust wrote it, add --trust, else check the other formats alone with --format NAME")
