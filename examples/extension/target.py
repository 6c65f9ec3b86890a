"""A target of one's own: one known machine, here a server with AMD Zen 3 processors.

llmc compile MODEL -x target.py --target epyc-milan -o m.llmc
"""

from dataclasses import replace

from llmc import Extension
from llmc.targets import TARGETS

AVX2 = TARGETS["x86-avx2"].cpus[-1]
ZEN3 = replace(AVX2, name="zen3", mcpu="znver3")  # LLVM's name; a machine needs no more than for AVX2
MILAN = replace(TARGETS["x86"], name="epyc-milan", description="AMD EPYC 7003 (Zen 3)", cpus=(ZEN3,))

extension = Extension("epyc-milan", targets=(MILAN,))
