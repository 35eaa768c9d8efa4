"""What `python sweeps/run.py --help` prints, from the files under conf/ and without Hydra."""

import textwrap
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"

HEAD = """\
archladder: train a ladder of language models that differ in their layer mix alone

python sweeps/run.py [-m] GROUP=OPTION[,OPTION…] KEY=VALUE[,VALUE…]
  -m            every combination of the comma-separated values; without it, one run
  plan=true     show runs, N, tokens, FLOPs and hours, start nothing
  dry_run=true  show each script for sbatch and its environment too, submit nothing
  cluster=…     where: local, slurm, or your own conf/cluster/mine.yaml (docs/cluster.md)
  --cfg job     print every setting with its value
  --config-dir  a folder of files of your own, like FOLDER/mix/NAME.yaml, before those of conf/

The same command again skips what is done, attaches to what is alive and resumes what stopped.
Ctrl-C asks local runs to save and stop, and detaches from a cluster; twice kills or cancels.
python sweeps/status.py shows, cancels and retries sweeps, and prints the logs of their runs.

Examples
  python sweeps/run.py mix=gdn3_attn1 size=50k
  python sweeps/run.py -m mix=transformer,gdn3_attn1 size=50k,100k seed=0,1 sweep=first
  python sweeps/run.py -m mix=gdn3_attn1 size=60m,150m,1b plan=true
  python sweeps/run.py -m mix=transformer,gdn3_attn1 size=60m,150m,1b seed=0,1,2 cluster=slurm

Groups and their options"""


def usage() -> str:
    """The whole help: commands, groups with their options, settings with their defaults."""
    lines = [HEAD]
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        options = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        lines.append(
            textwrap.fill(
                options, 100, initial_indent=f"  {group.name:12}", subsequent_indent=" " * 14
            )
        )
    lines += ["", "Settings and their defaults; a group's own are in conf/GROUP/OPTION.yaml", ""]
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    _, _, settings = text.partition("\nsweep:")
    settings, _, _ = settings.partition("\nhydra:")
    return "\n".join(lines) + textwrap.indent("sweep:" + settings.rstrip(), "  ")
