"""The largest stable learning rate of gradient descent on the quadratic model `E = (1/2N) Σ |f − y|²`, whose Hessian is F.

Above these limits a wide network does not diverge at once: the loss first grows by orders of magnitude, and may come back
where the curvature is smaller (measured).
"""

from typing import Any


def gradient_descent(lambda_max: Any, momentum: float = 0.0) -> Any:
    """`2 (1 + β)/λ_max`, β the momentum of the heavy ball.

    Reference: standard (from memory; checked on finite networks for β = 0).
    """
    return 2 * (1 + momentum) / lambda_max


def stochastic(lambda_max: Any, gradient_norm: Any, batch: int) -> Any:
    """`2/[g/B + (B − 1)/B λ_max]`: enough for batches of B drawn with replacement, in mean square.

    Args:
        gradient_norm: g, the largest squared gradient `|∇f(x_n)|²` of a sample; θ₁ in theory.

    Reference: derived; a lower bound of the measured threshold.
    """
    return 2 / (gradient_norm / batch + (batch - 1) / batch * lambda_max)


def natural_gradient(blocks: int = 1) -> float:
    """2 for steps F⁻¹∇, whatever depth and width; 2/blocks is enough if F is taken block by block: F <= blocks · diag(F).

    Reference: derived.
    """
    return 2.0 / blocks


def gain_of_mean_subtraction(theta1: Any, theta2: Any, samples: float) -> Any:
    """`1 + N θ₂/(θ₁ − θ₂)`: by what the limit grows when the outputs' batch mean is subtracted, if the bulk is flat.

    Reference: derived; finite networks gain less, see `spectra.mean_subtracted_edge`.
    """
    return 1 + samples * theta2 / (theta1 - theta2)
