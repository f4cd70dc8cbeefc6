import matplotlib
import pytest
import torch
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.image import imread
from routings import token_choice
from torch import nn

from moekit.contracts import LayerDims, Model, ModelOutput
from moekit.inference.evaluation import evaluate
from moekit.moe_layer import MoELayer
from moekit.registry import build
from moekit.routing import ExpertChoice, Soft
from moekit_data.decision_regions import DecisionRegions
from moekit_data.decision_regions.picture import INK, SHADES, VOWEL_COLOURS, _Plane, largest_gate_T
from moekit_data.vowels import Vowels
from moekit_dispatchers.soft import Soft as SoftDispatcher
from moekit_experts.linear import Linear
from moekit_report.pictures import contrast
from moekit_routers.dense import Dense


@pytest.fixture
def data():
    data = build(Vowels())
    data.prepare()
    return data


class Line(Model):
    """Answers 1 where F1 is less than 0.5 kHz: right for iy and ih alone."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs, *, valid=None):
        return ModelOutput(y=torch.sigmoid(200 * (self.at - inputs[:, :1])))


class Mixture(Model):
    """Two experts; the gate gives all F2 above 1.8 kHz to expert 1."""

    def __init__(self):
        super().__init__()
        dims = LayerDims(dim=2, num_experts=2, out_dim=1)
        self.moe = MoELayer(
            router=build(Dense(), dims), experts=build(Linear(count=2), dims), dispatcher=build(SoftDispatcher(), dims)
        )
        with torch.no_grad():
            self.moe.router.weight_ED.copy_(torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
            self.moe.router.bias_E.copy_(torch.tensor([0.0, -180.0]))

    def forward(self, inputs, *, valid=None):
        y_TO, report = self.moe(inputs)
        return ModelOutput(y=y_TO, reports={"moe": report})


def test_the_plane_holds_the_models_answer_at_each_point(data):
    plane = _Plane(Line(), data)
    left = plane.output[:, plane.f1 < 480]
    right = plane.output[:, plane.f1 > 520]
    assert (left > 0.9).all()
    assert (right < 0.1).all()
    hits = ((data.train.x_TD[:, 0] < 0.5) == (data.train.d_TO[:, 0] > 0.5)).double().mean()
    assert plane.correct[0] == pytest.approx(hits.item())
    assert plane.expert is None


def test_gate_regions_follow_the_gate(data):
    plane = _Plane(Mixture(), data)
    assert (plane.expert[plane.f2 > 1810] == 1).all()
    assert (plane.expert[plane.f2 < 1790] == 0).all()
    assert plane.num_experts == len(plane.expert_output) == 2


@pytest.mark.parametrize(("model", "is_wide"), [(Mixture, True), (Line, False)])
def test_the_picture_is_plotted_without_side_effects(data, tmp_path, model, is_wide):
    before = dict(matplotlib.rcParams)
    model = model().train()
    (path,) = evaluate({"regions": build(DecisionRegions())}, model, data, tmp_path / "plots").files
    pixels = imread(path)
    assert path == tmp_path / "plots" / "vowels.png"
    assert pixels.std() > 0.05
    assert (pixels.shape[1] > 2 * pixels.shape[0]) is is_wide
    assert model.training
    assert dict(matplotlib.rcParams) == before
    assert all(p.grad is None for p in model.parameters())


def test_markers_stand_out_from_the_shades_and_share_no_hue_with_them():
    for colour in (*VOWEL_COLOURS, INK):
        assert min(contrast(colour, shade) for shade in SHADES) >= 3, colour
    hue, saturation, _ = rgb_to_hsv(to_rgb(SHADES[2]))
    hues = [rgb_to_hsv(to_rgb(colour))[0] for colour in VOWEL_COLOURS[:4]]  # of the recipe's four vowels
    assert saturation > 0.1 and min(abs(other - hue) for other in hues) > 0.05
    assert rgb_to_hsv(to_rgb(SHADES[0]))[1] == 0  # grey


def test_the_largest_gate_is_found_in_every_form_of_routing():
    scores_TE = torch.zeros(3, 4)
    common = {"logits_TE": scores_TE, "scores_TE": scores_TE}
    soft = Soft(**common, combine_TEP=torch.eye(4)[[2, 0, 3]][:, :, None])
    gate_TK = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.7, 0.3]])
    token = token_choice(scores_TE, [[1, 2], [0, 3], [3, 1]], gate_TK=gate_TK)
    expert = ExpertChoice(
        **common, token_EC=torch.tensor([[1], [0], [0], [2]]), gate_EC=torch.tensor([[1.0], [0.2], [0.3], [1.0]])
    )
    for routing in (soft, token, expert):
        assert largest_gate_T(routing).tolist() == [2, 0, 3]
