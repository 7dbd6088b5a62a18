"""The README's figure is drawn from the records of SGD."""

import matplotlib.pyplot as plt
import pytest

from benchmarks import without_batchnorm


@pytest.mark.parametrize("network", without_batchnorm.NETWORKS)
def test_every_method_is_drawn_over_all_its_rates(network):
    figure, ax = plt.subplots()
    without_batchnorm.panel(ax, without_batchnorm.NETWORKS[network])
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == [label for label, *_ in without_batchnorm.LINES.values()]
    for line in lines.values():
        assert list(line.get_xdata()) == [0.01, 0.03, 0.1, 0.3, 1.0]
        assert all(0 <= accuracy <= 1 for accuracy in line.get_ydata())
    plt.close(figure)


def test_the_file_is_written(tmp_path):
    without_batchnorm.main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
