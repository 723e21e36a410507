"""Settings under which a benchmark takes seconds: two tasks of short prompts, and the tiny model."""

from pathlib import Path

from tests.runs import toy


def settings(folder: Path) -> list[str]:
    """Write the data, unless they are there, and give the settings that read them."""
    if not folder.exists():
        toy.write_tasks(folder)
    return [
        "method=see",
        "order=jsonl",
        f"benchmark.reader.folder={folder}",
        "order.tasks=[sky,sea]",
        "benchmark.default.score=exact_match",
        "model=tiny",
        "indicators.pos=++",
        "indicators.neg=--",
        "adapter.rank=8",
        "adapter.alpha=256",
        "adapter.dropout=0.05",
        "adapter.targets=[q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
        "optim.lr=1e-2",
        "optim.epochs=10",
        "train_size=4",
        "test_size=2",
    ]
