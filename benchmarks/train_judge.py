"""Train the vetoed shapes' judge as the shipped one was: `python -m benchmarks.train_judge`.

On which shapes are present in pictures, apart and over each other, that were disturbed at random,
and then on adversarial ones, so that it goes by what a person sees: 15 minutes on 4 cores. The
weights replace the shipped ones.
"""

from pathlib import Path

from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from mti_lightning.vetoed_shapes.judge import WEIGHTS
from mti_lightning.vetoed_shapes.training import VetoedShapesClassifier, VetoedShapesData
from mti_lightning.vetoed_shapes.world import Sample, VetoedShapes

SEED = 1


class JudgeData(VetoedShapesData):
    """Every fourth training picture holds two shapes over each other."""

    def __init__(self, steps: int, seed: int) -> None:
        super().__init__(steps * 128, validation_size=1024, seed=seed)
        self.overlapping = VetoedShapes(len(self.train), seed, "train", "overlap")

    def train_dataloader(self) -> DataLoader[Sample]:
        apart = self.train

        class Mixed(Dataset[Sample]):
            def __len__(self) -> int:
                return len(apart)

            def __getitem__(_, index: int) -> Sample:  # noqa: N805  self is the data's
                return (apart if index % 4 else self.overlapping)[index]

        return self._loader(Mixed())


def main() -> None:
    """Train the judge as the backbone was."""
    for name, steps, part in (
        ("judge", 1800, {}),
        (
            "judge_hardened",
            800,
            {"adversarial": 0.03, "learning_rate": 2e-3, "start": str(WEIGHTS)},
        ),
    ):
        seed_everything(SEED)
        trainer = Trainer(
            max_epochs=1,
            logger=CSVLogger("tb_logs", name),
            enable_checkpointing=False,
            accelerator="cpu",
            precision="bf16-mixed",
            val_check_interval=steps // 4,
        )
        training = VetoedShapesClassifier("vetoed_shapes_judge", "present", disturbed=True, **part)
        trainer.fit(training, JudgeData(steps, SEED + (name != "judge")))
        (Path(trainer.log_dir or "") / "weights.safetensors").replace(WEIGHTS)


if __name__ == "__main__":
    main()
