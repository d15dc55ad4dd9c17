"""Train the vetoed shapes' backbone as the shipped one was: `make train`.

Learn, harden against a large adversarial step, settle with a small one: 20 minutes on 4 cores.
The last line says where the weights are.
"""

from pathlib import Path

from mti_lightning.cli import main


def latest(name: str) -> str:
    """Return the weights of the latest run called `name`."""
    runs = Path("tb_logs", name).glob("version_*/weights.safetensors")
    return str(max(runs, key=lambda path: path.stat().st_mtime))


if __name__ == "__main__":
    main(["fit", "--config", "configs/train_vetoed_shapes.yaml"])
    start = latest("train_vetoed_shapes")
    main(["fit", "--config", "configs/harden_vetoed_shapes.yaml", "--model.init_args.start", start])
    start = latest("harden_vetoed_shapes")
    main(["fit", "--config", "configs/settle_vetoed_shapes.yaml", "--model.init_args.start", start])
    print(latest("settle_vetoed_shapes"))
