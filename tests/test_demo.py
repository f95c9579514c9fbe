import time

import pytest
import torch

from tests.helpers import threads

matplotlib = pytest.importorskip("matplotlib")


def test_an_error_in_training_leaves_threads_and_backend_as_they_were(monkeypatch, tmp_path):
    demo = pytest.importorskip("rnndrop.demo")
    backend = matplotlib.get_backend()

    def interrupted(*args):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "fit_sine", interrupted)
    monkeypatch.setattr(matplotlib, "use", lambda name: pytest.fail("the backend was changed"))
    with threads(2):
        with pytest.raises(KeyboardInterrupt):
            demo.run(tmp_path)
        assert torch.get_num_threads() == 2 and matplotlib.get_backend() == backend


def test_progress_prints_few_lines_where_there_is_no_terminal(capsys):
    demo = pytest.importorskip("rnndrop.demo")
    with demo.progress_bar(50) as progress:
        for _ in range(50):
            time.sleep(0.01)
            progress.update()
    bars = capsys.readouterr().err
    assert "50/50" in bars and bars.count("\r") <= 2  # the first and the last
