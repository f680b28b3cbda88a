"""``medvlp phantom``: a phantom in the layout of one corpus, or of all."""

import argparse

from medvlp.arguments import add_corpus_arguments, settle_corpus_arguments
from medvlp.console import progress_bar
from medvlp.phantom import FINDINGS, LAYOUTS, Difficulty, PhantomSpec, write_phantom

_DIFFICULTY = {
    "contrast": "factor on the findings' contrast",
    "noise": "factor on the image noise",
    "lesion_size": "factor on the findings' size",
    "omission": "rate at which reports omit a finding",
    "uncertainty": "rate at which reports hedge a finding",
    "prevalence": "factor on the odds of each finding",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp phantom``."""
    add_corpus_arguments(parser, default="mimic_cxr")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--laterals", type=float, default=0.2, help="share of studies with a lateral view")
    for name, text in _DIFFICULTY.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Difficulty, name), help=text)
    parser.add_argument("--findings", nargs="+", metavar="NAME", help="findings that may occur (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    parser.add_argument("--overwrite", action="store_true", help="replace another phantom in the folder")


def run(args: argparse.Namespace) -> int:
    """Run ``medvlp phantom``; return its exit status."""
    settle_corpus_arguments(args, "phantom")
    spec = PhantomSpec(
        studies=args.studies,
        seed=args.seed,
        size=args.size,
        laterals=args.laterals,
        findings=tuple(args.findings or FINDINGS),
        difficulty=Difficulty(**{name: getattr(args, name) for name in _DIFFICULTY}),
    )
    for layout in LAYOUTS if args.dataset == "all" else (args.dataset,):
        folder = args.root / layout if args.dataset == "all" else args.root
        with progress_bar("writing the phantom", spec.studies) as update:
            settings = {"workers": args.workers, "overwrite": args.overwrite}
            write_phantom(layout, folder, spec, progress=lambda studies: update(completed=studies), **settings)
        print(f"{args.studies} studies in {folder}")
    return 0
