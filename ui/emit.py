"""What --json prints."""

import argparse
import json
from typing import Any


def emit(arguments: argparse.Namespace, document: Any) -> bool:
    """Print the document where --json asks for it; returns whether it did."""
    if arguments.json:
        print(json.dumps(document))
    return bool(arguments.json)
