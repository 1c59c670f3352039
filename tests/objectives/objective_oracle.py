"""The objectives in float64 NumPy, in the letters of their papers, on a model of two layers.

A loss takes the weights w that learn and the weights w0 that they were before: what a paper holds fixed (a prediction
under stop-gradient, the first gradient of GradAlign) is computed at w0, so that numerical derivatives in w leave it be.
"""

import numpy as np


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def ce(z, p):
    return -(p * log_softmax(z)).sum(-1)


def kl(p, z):
    """KL(p || softmax(z))."""
    return (p * (np.log(p) - log_softmax(z))).sum(-1)


def smooth(y, s):
    return (1 - s) * y + s / y.shape[-1]


def logits(w, x):
    a, b = w
    return np.tanh(x.reshape(len(x), -1) @ a) @ b


def slope(w, x, y):
    """The gradient of CE(f(x), y) in x, by hand: [B,D]."""
    a, b = w
    h = np.tanh(x.reshape(len(x), -1) @ a)
    return (((softmax(h @ b) - y) @ b.T) * (1 - h**2)) @ a.T


def standard(w, w0, c, label_smoothing=0.0):
    return ce(logits(w, c.x), smooth(c.y, label_smoothing))


def gradient_norm(w, w0, c, weight, epsilon, norm="linf", label_smoothing=0.0):
    g = slope(w, c.x, c.y)
    length = {"linf": np.abs(g).sum(-1), "l2": np.sqrt((g**2).sum(-1)), "l1": np.abs(g).max(-1)}[norm]
    return standard(w, w0, c, label_smoothing) + weight * epsilon * length


def adversarial(w, w0, c, label_smoothing=0.0, grad_align=0.0, epsilon=0.0):
    g, g_eta = slope(w0, c.x, c.y), slope(w, c.eta, c.y)
    cosine = (g * g_eta).sum(-1) / np.sqrt((g**2).sum(-1) * (g_eta**2).sum(-1))
    return ce(logits(w, c.attacked), smooth(c.y, label_smoothing)) + grad_align * (1 - cosine)


def mixed(w, w0, c, share):
    return (1 - share) * ce(logits(w, c.x), c.y) + share * ce(logits(w, c.attacked), c.y)


def trades(w, w0, c, beta, label_smoothing=0.0):
    z = logits(w, c.x)
    return ce(z, smooth(c.y, label_smoothing)) + beta * kl(softmax(z), logits(w, c.attacked))


def mart(w, w0, c, beta):
    p, q = softmax(logits(w, c.x)), softmax(logits(w, c.attacked))
    label = c.y.argmax(-1)
    rows = np.arange(len(label))
    wrong = np.array([np.delete(row, k).max() for row, k in zip(q, label, strict=True)])
    boosted = ce(np.log(q), c.y) - np.log(1 - wrong)
    p_y = (c.y * p).sum(-1) if ((c.y > 0).sum(-1) > 1).any() else p[rows, label]
    return boosted + beta * (p * np.log(p / q)).sum(-1) * (1 - p_y)


def hat(w, w0, c, beta, gamma, h):
    named = np.eye(c.y.shape[-1])[logits(c.teacher, c.attacked).argmax(-1)]
    beyond = logits(w, c.x + h * (c.attacked - c.x))
    return trades(w, w0, c, beta) + gamma * ce(beyond, named)


def score_label(y, s):
    k = y.shape[-1]
    return (1 - k * s / (k - 1)) * y + s / (k - 1)


def score_adversarial(w, w0, c, clip, label_smoothing):
    distance = ((softmax(logits(w, c.attacked)) - score_label(c.y, label_smoothing)) ** 2).sum(-1)
    return np.maximum(distance - clip, 0)


def score_trades(w, w0, c, beta, clip, label_smoothing):
    p, q = softmax(logits(w, c.x)), softmax(logits(w, c.attacked))
    natural = ((p - score_label(c.y, label_smoothing)) ** 2).sum(-1)
    return natural + beta * np.maximum(((q - p) ** 2).sum(-1) - clip, 0)


def decoupled(w, w0, c, s, beta, alpha):
    """With the K^2 pairs written out."""
    z, z_attacked = logits(w, c.x), logits(w, c.attacked)
    d_n, d_a = (a[:, :, None] - a[:, None, :] for a in (z, z_attacked))
    mse = 0.25 * (s[:, :, None] * s[:, None, :] * (d_n - d_a) ** 2).sum((1, 2))
    sce = ce(z_attacked, softmax(logits(w0, c.x)))
    return ce(z, c.y) + beta * mse + alpha * sce


def ikl(w, w0, c, beta, alpha, temperature):
    return decoupled(w, w0, c, c.y @ c.means, beta, alpha)


def gkl(w, w0, c, beta, alpha, temperature, gamma):
    s = (c.y @ c.means) ** gamma
    return decoupled(w, w0, c, s / s.sum(-1, keepdims=True), beta, alpha)


def deit_hard(w, w0, c, alpha, label_smoothing):
    z, named = logits(w, c.x), np.eye(c.y.shape[-1])[logits(c.teacher, c.x).argmax(-1)]
    return (1 - alpha) * ce(z, smooth(c.y, label_smoothing)) + alpha * ce(z, named)


def deit_soft(w, w0, c, alpha, temperature):
    z, t = logits(w, c.x), temperature
    return (1 - alpha) * ce(z, c.y) + alpha * t**2 * kl(softmax(logits(c.teacher, c.x) / t), z / t)


def rslad(w, w0, c, alpha):
    label = softmax(logits(c.teacher, c.x))
    return (1 - alpha) * kl(label, logits(w, c.x)) + alpha * kl(label, logits(w, c.attacked))


def ard(w, w0, c, alpha, temperature):
    t = temperature
    lesson = t**2 * kl(softmax(logits(c.teacher, c.x) / t), logits(w, c.attacked) / t)
    return alpha * lesson + (1 - alpha) * ce(logits(w, c.x), c.y)


def ltd(w, w0, c, beta, temperature):
    z = logits(w, c.x)
    label = softmax(logits(c.teacher, c.x) / temperature)
    return ce(z, label) + beta * kl(softmax(z), logits(w, c.attacked))


def step(loss, w0, rate, h=1e-6):
    """One step of gradient descent on the mean loss; the gradient by central differences."""
    after = [np.array(part) for part in w0]
    for i, part in enumerate(w0):
        for place in np.ndindex(part.shape):
            ends = []
            for sign in (1, -1):
                w = [np.array(p) for p in w0]
                w[i][place] += sign * h
                ends.append(loss(w, w0).mean())
            after[i][place] -= rate * (ends[0] - ends[1]) / (2 * h)
    return after
