import torch

from cai_helpers.models.sampling import GumbelNucleus, Sampling, gumbel_noise

SCORES = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(4000, 1)
KEYS = [f"row {n}" for n in range(4000)]


def draw(sampling: Sampling, keys=KEYS, scores=SCORES, length=5) -> torch.Tensor:
    return GumbelNucleus(sampling, keys, 5)(torch.zeros(len(scores), length), scores).argmax(-1)


def test_draws_follow_the_softmax():
    drawn = draw(Sampling(max_new_tokens=1, temperature=1.0, top_p=1.0))
    expected = torch.softmax(SCORES[0], 0)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 4000, expected, atol=0.02)


def test_temperature_divides_the_scores():
    drawn = draw(Sampling(max_new_tokens=1, temperature=2.0, top_p=1.0))
    expected = torch.softmax(SCORES[0] / 2, 0)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 4000, expected, atol=0.02)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    drawn = draw(Sampling(max_new_tokens=1, temperature=1.0, top_p=0.7))  # 0.644 + 0.237 of the two likeliest
    assert set(drawn.tolist()) == {2, 3}


def test_a_row_draws_the_same_whatever_its_neighbours():
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=1.0)
    together = draw(sampling)
    assert torch.equal(draw(sampling, KEYS[::-1]).flip(0), together)
    assert draw(sampling, KEYS[7:8], SCORES[7:8]).item() == together[7]


def test_rows_positions_and_seeds_draw_differently():
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=1.0)
    assert not torch.equal(draw(sampling, length=6), draw(sampling))
    assert not torch.equal(draw(sampling.model_copy(update={"seed": 1})), draw(sampling))


def test_the_noise_is_standard_gumbel():
    noise = gumbel_noise(torch.arange(2000).unsqueeze(1), 3, torch.arange(100).expand(2000, 100))
    assert abs(noise.mean() - 0.5772) < 0.01  # Euler's constant
    assert abs(noise.var() - torch.pi**2 / 6) < 0.02
