"""``medvlp phantom``: a phantom in the layout of one corpus, or of all."""

import argparse

from medvlp.arguments import add_corpus_arguments, settle_corpus_arguments
from medvlp.console import progress_bar
from medvlp.phantom import FINDINGS, LAYOUTS, Difficulty, PhantomSpec, write_phantom


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp phantom``."""
    add_corpus_arguments(parser, default="mimic_cxr")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--laterals", type=float, default=0.2, help="share of studies with a lateral view")
    parser.add_argument("--contrast", type=float, default=1.0, help="factor on the findings' contrast")
    parser.add_argument("--noise", type=float, default=1.0, help="factor on the image noise")
    parser.add_argument("--lesion-size", type=float, default=1.0, help="factor on the findings' size")
    parser.add_argument("--omission", type=float, default=0.05, help="rate at which reports omit a finding")
    parser.add_argument("--uncertainty", type=float, default=0.1, help="rate at which reports hedge a finding")
    parser.add_argument("--prevalence", type=float, default=1.0, help="factor on the odds of each finding")
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
        difficulty=Difficulty(
            contrast=args.contrast,
            noise=args.noise,
            lesion_size=args.lesion_size,
            omission=args.omission,
            uncertainty=args.uncertainty,
            prevalence=args.prevalence,
        ),
    )
    for layout in LAYOUTS if args.dataset == "all" else (args.dataset,):
        folder = args.root / layout if args.dataset == "all" else args.root
        with progress_bar("writing the phantom", spec.studies) as update:
            write_phantom(
                layout,
                folder,
                spec,
                workers=args.workers,
                overwrite=args.overwrite,
                progress=lambda studies: update(completed=studies),
            )
        print(f"{args.studies} studies in {folder}")
    return 0
