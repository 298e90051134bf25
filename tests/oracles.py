"""Published update rules in float64 NumPy: what the optimizer tests compare the library with.

Deliberately written from the papers and the authors' code, not from the library, line by line and without economy.
Every rule is `rule(p0, grads, steps, **hypers)`: `p0` a list of float64 arrays, `grads(step, params)` the list of
gradients at `params` with `step` counted from 1. It returns the parameters after `steps` steps and changes no argument.

`lbfgs` is apart from these, for its steps ask for the loss and for gradients as often as they like.
"""

import math

import numpy as np


def _copies(arrays):
    return [np.array(a, dtype=np.float64) for a in arrays]


def _zeros(arrays):
    return [np.zeros(np.shape(a)) for a in arrays]


def _cautious(u, g):
    # Liang et al. 2024, Cautious Optimizers. Their paper scales by numel / (kept + 1), as here; timm and the authors'
    # later code by numel / max(kept, numel / 1000).
    mask = (u * g > 0).astype(np.float64)
    return u * mask * (mask.size / (mask.sum() + 1))


def momentum(p0, grads, steps, *, lr=1e-2, momentum=0.9, weight_decay=0.0, nesterov=False):
    # Polyak 1964; Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
    # nesterov: their look-ahead form, rewritten for the looked-ahead parameters (Bengio et al. 2013; CS231n).
    p = _copies(p0)
    v = _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            g_t = g[i] + weight_decay * p[i]
            v_prev = v[i]
            v[i] = momentum * v_prev - lr * g_t
            if nesterov:
                p[i] = p[i] - momentum * v_prev + (1 + momentum) * v[i]
            else:
                p[i] = p[i] + v[i]
    return p


def adagrad(
    p0,
    grads,
    steps,
    *,
    lr=1e-2,
    lr_decay=0.0,
    weight_decay=0.0,
    initial_accumulator_value=0.0,
    eps=1e-10,
    accumulator="sum",
):
    # Duchi, Hazan and Singer 2011, Adaptive Subgradient Methods, with a diagonal matrix.
    # eps outside the root, lr_decay and the coupled decay as in torch.optim.Adagrad; "mean" is Lee's lecture form.
    p = _copies(p0)
    total = [np.full(a.shape, float(initial_accumulator_value)) for a in p]
    for t in range(1, steps + 1):
        g = grads(t, p)
        clr = lr / (1 + (t - 1) * lr_decay)
        for i in range(len(p)):
            g_t = g[i] + weight_decay * p[i]
            total[i] = total[i] + g_t**2
            if accumulator == "sum":
                sigma = np.sqrt(total[i])
            elif accumulator == "mean":
                sigma = np.sqrt(total[i] / t)
            else:
                raise ValueError(accumulator)
            p[i] = p[i] - clr * g_t / (sigma + eps)
    return p


def adam(
    p0,
    grads,
    steps,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    decoupled_weight_decay=False,
    cautious=False,
):
    # Kingma and Ba 2015, Adam, algorithm 1; amsgrad: Reddi, Kale and Kumar 2018, algorithm 2.
    # amsgrad: the paper has no bias correction; torch.optim divides the maximum of the uncorrected v by 1 - beta2^t.
    beta1, beta2 = betas
    p = _copies(p0)
    m, v, v_max = _zeros(p), _zeros(p), _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            if decoupled_weight_decay:
                g_t = g[i]
                p[i] = (1 - lr * weight_decay) * p[i]
            else:
                g_t = g[i] + weight_decay * p[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g_t
            v[i] = beta2 * v[i] + (1 - beta2) * g_t**2
            v_max[i] = np.maximum(v_max[i], v[i])
            m_hat = m[i] / (1 - beta1**t)
            v_hat = (v_max[i] if amsgrad else v[i]) / (1 - beta2**t)
            u = m_hat / (np.sqrt(v_hat) + eps)
            if cautious:
                u = _cautious(u, g_t)
            p[i] = p[i] - lr * u
    return p


def adamw(p0, grads, steps, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, cautious=False):
    # Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
    # The paper decays by eta_t * wd without the learning rate alpha; torch.optim.AdamW by lr * wd.
    return adam(
        p0,
        grads,
        steps,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        decoupled_weight_decay=True,
        cautious=cautious,
    )


def nadam(
    p0,
    grads,
    steps,
    *,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    momentum_decay=4e-3,
    decoupled_weight_decay=False,
    cautious=False,
):
    # Dozat 2016, Incorporating Nesterov Momentum into Adam.
    # torch.optim.NAdam and Keras average m with the constant beta1, the paper with mu_t.
    beta1, beta2 = betas
    p = _copies(p0)
    m, n = _zeros(p), _zeros(p)
    mu_product = 1.0
    for t in range(1, steps + 1):
        g = grads(t, p)
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        mu_product = mu_product * mu
        for i in range(len(p)):
            if decoupled_weight_decay:
                g_t = g[i]
                p[i] = (1 - lr * weight_decay) * p[i]
            else:
                g_t = g[i] + weight_decay * p[i]
            g_hat = g_t / (1 - mu_product)
            m[i] = beta1 * m[i] + (1 - beta1) * g_t
            m_hat = m[i] / (1 - mu_product * mu_next)
            n[i] = beta2 * n[i] + (1 - beta2) * g_t**2
            n_hat = n[i] / (1 - beta2**t)
            m_bar = (1 - mu) * g_hat + mu_next * m_hat
            u = m_bar / (np.sqrt(n_hat) + eps)
            if cautious:
                u = _cautious(u, g_t)
            p[i] = p[i] - lr * u
    return p


def radam(
    p0,
    grads,
    steps,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    cautious=False,
):
    # Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond, algorithm 2.
    # The paper rectifies where rho_t > 4 and has no eps; torch.optim.RAdam where rho_t > 5, eps added to the raw root.
    beta1, beta2 = betas
    p = _copies(p0)
    m, v = _zeros(p), _zeros(p)
    rho_inf = 2 / (1 - beta2) - 1
    for t in range(1, steps + 1):
        g = grads(t, p)
        rho_t = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        for i in range(len(p)):
            if decoupled_weight_decay:
                g_t = g[i]
                p[i] = (1 - lr * weight_decay) * p[i]
            else:
                g_t = g[i] + weight_decay * p[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g_t
            v[i] = beta2 * v[i] + (1 - beta2) * g_t**2
            m_hat = m[i] / (1 - beta1**t)
            if rho_t > 5:
                l_t = math.sqrt(1 - beta2**t) / (np.sqrt(v[i]) + eps)
                r_t = math.sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
                u = r_t * m_hat * l_t
            else:
                u = m_hat
            if cautious:
                u = _cautious(u, g_t)
            p[i] = p[i] - lr * u
    return p


def adamax(p0, grads, steps, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, cautious=False):
    # Kingma and Ba 2015, Adam, algorithm 2 (AdaMax).
    # torch.optim.Adamax adds eps to |g| inside the maximum; the paper has no eps.
    beta1, beta2 = betas
    p = _copies(p0)
    m, norm = _zeros(p), _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            g_t = g[i] + weight_decay * p[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g_t
            norm[i] = np.maximum(beta2 * norm[i], np.abs(g_t) + eps)
            m_hat = m[i] / (1 - beta1**t)
            u = m_hat / norm[i]
            if cautious:
                u = _cautious(u, g_t)
            p[i] = p[i] - lr * u
    return p


def lion(p0, grads, steps, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, cautious=False):
    # Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2.
    beta1, beta2 = betas
    p = _copies(p0)
    m = _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            c = beta1 * m[i] + (1 - beta1) * g[i]
            u = np.sign(c)
            if cautious:
                u = _cautious(u, g[i])
            p[i] = p[i] - lr * (u + weight_decay * p[i])
            m[i] = beta2 * m[i] + (1 - beta2) * g[i]
    return p


def lamb(p0, grads, steps, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01):
    # You et al. 2020, Large Batch Optimization for Deep Learning, algorithm 2 with phi the identity.
    # The ratio is 1 where a norm is 0, as in NVIDIA's and timm's LAMB, but here it also applies when wd = 0.
    beta1, beta2 = betas
    p = _copies(p0)
    m, v = _zeros(p), _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            r = m_hat / (np.sqrt(v_hat) + eps)
            u = r + weight_decay * p[i]
            p_norm = np.linalg.norm(p[i])
            u_norm = np.linalg.norm(u)
            ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
            p[i] = p[i] - lr * ratio * u
    return p


def lars(
    p0,
    grads,
    steps,
    *,
    lr=1.0,
    momentum=0.9,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    trust_coefficient=1e-3,
    eps=1e-8,
):
    # You, Gitman and Ginsburg 2017, Large Batch Training of Convolutional Networks, algorithm 1.
    # The paper has lr inside the velocity and no eps; torch's convention (lr outside) and eps as in timm and apex LARC.
    p = _copies(p0)
    buf = [None] * len(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            p_norm = np.linalg.norm(p[i])
            g_norm = np.linalg.norm(g[i])
            if p_norm > 0 and g_norm > 0:
                ratio = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps)
            else:
                ratio = 1.0
            d = ratio * (g[i] + weight_decay * p[i])
            if momentum != 0:
                if buf[i] is None:
                    buf[i] = d
                else:
                    buf[i] = momentum * buf[i] + (1 - dampening) * d
                d = d + momentum * buf[i] if nesterov else buf[i]
            p[i] = p[i] - lr * d
    return p


def ademamix(
    p0,
    grads,
    steps,
    *,
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha=2.0,
    eps=1e-8,
    weight_decay=0.0,
    t_alpha=None,
    t_beta3=None,
    cautious=False,
):
    # Pagliardini, Ablin and Grangier 2024, The AdEMAMix Optimizer, algorithm 1 and the schedulers of section 3.
    # apple/ml-ademamix adds 1e-8 to each beta inside the logarithms of the beta3 scheduler; the paper does not.
    beta1, beta2, beta3 = betas
    p = _copies(p0)
    m1, m2, v = _zeros(p), _zeros(p), _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        alpha_t = alpha
        if t_alpha is not None:
            alpha_t = min(t * alpha / t_alpha, alpha)
        beta3_t = beta3
        if t_beta3 is not None:
            ln1, ln3 = math.log(beta1), math.log(beta3)
            beta3_t = min(math.exp(ln1 * ln3 / ((1 - t / t_beta3) * ln3 + (t / t_beta3) * ln1)), beta3)
        for i in range(len(p)):
            m1[i] = beta1 * m1[i] + (1 - beta1) * g[i]
            m2[i] = beta3_t * m2[i] + (1 - beta3_t) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m1_hat = m1[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            u = (m1_hat + alpha_t * m2[i]) / (np.sqrt(v_hat) + eps)
            if cautious:
                u = _cautious(u, g[i])
            p[i] = p[i] - lr * (u + weight_decay * p[i])
    return p


def adan(p0, grads, steps, *, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0):
    # Xie et al. 2022, Adan: Adaptive Nesterov Momentum Algorithm, algorithm 1.
    # sail-sg/Adan: betas are 1 - the paper's, every average is bias-corrected, g_0 = g_1; the paper corrects none.
    beta1, beta2, beta3 = betas
    p = _copies(p0)
    m, v, n = _zeros(p), _zeros(p), _zeros(p)
    g_prev = None
    for t in range(1, steps + 1):
        g = _copies(grads(t, p))
        if g_prev is None:
            g_prev = g
        for i in range(len(p)):
            diff = g[i] - g_prev[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * diff
            n[i] = beta3 * n[i] + (1 - beta3) * (g[i] + beta2 * diff) ** 2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            n_hat = n[i] / (1 - beta3**t)
            eta = lr / (np.sqrt(n_hat) + eps)
            p[i] = (p[i] - eta * (m_hat + beta2 * v_hat)) / (1 + lr * weight_decay)
        g_prev = g
    return p


def adopt(
    p0,
    grads,
    steps,
    *,
    lr=1e-3,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    cautious=False,
):
    # Taniguchi et al. 2024, ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate (clipped form).
    # The paper and iShohei220/adopt count the first gradient as number 0: their t^(1/4) is (t - 1)^(1/4) here.
    beta1, beta2 = betas
    p = _copies(p0)
    m, v = _zeros(p), _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            g_t = g[i] if decoupled_weight_decay else g[i] + weight_decay * p[i]
            if t == 1:
                v[i] = g_t**2
                continue
            if decoupled_weight_decay:
                p[i] = (1 - lr * weight_decay) * p[i]
            c = (t - 1) ** 0.25
            n = np.clip(g_t / np.maximum(np.sqrt(v[i]), eps), -c, c)
            m[i] = beta1 * m[i] + (1 - beta1) * n
            u = _cautious(m[i], g_t) if cautious else m[i]
            p[i] = p[i] - lr * u
            v[i] = beta2 * v[i] + (1 - beta2) * g_t**2
    return p


def schedule_free_adamw(
    p0,
    grads,
    steps,
    *,
    lr=0.0025,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    # Defazio et al. 2024, The Road Less Scheduled, algorithm 1, as facebookresearch/schedule_free keeps it: y and z.
    # The paper weighs by lr_t^2, the code by t^r * lr_max^weight_lr_power with lr_max the largest lr_t so far.
    beta1, beta2 = betas
    y = _copies(p0)
    z = _copies(p0)
    v = _zeros(y)
    lr_max = -1.0
    weight_sum = 0.0
    for t in range(1, steps + 1):
        g = grads(t, y)
        lr_t = lr * (min(1.0, t / warmup_steps) if warmup_steps > 0 else 1.0)
        lr_max = max(lr_max, lr_t)
        weight = t**r * lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum != 0 else 0.0
        for i in range(len(y)):
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            v_hat = v[i] / (1 - beta2**t)
            u = g[i] / (np.sqrt(v_hat) + eps) + weight_decay * y[i]
            y[i] = (1 - c) * y[i] + c * z[i] + lr_t * (beta1 * (1 - c) - 1) * u
            z[i] = z[i] - lr_t * u
    return y


def schedule_free_adamw_eval(
    p0,
    grads,
    steps,
    *,
    lr=0.0025,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    # Defazio et al. 2024, The Road Less Scheduled, algorithm 1 itself: x and z are kept, y is where the gradient is.
    # The weights of the average are those of facebookresearch/schedule_free. It returns x.
    beta1, beta2 = betas
    x = _copies(p0)
    z = _copies(p0)
    v = _zeros(x)
    lr_max = -1.0
    weight_sum = 0.0
    for t in range(1, steps + 1):
        y = [(1 - beta1) * z[i] + beta1 * x[i] for i in range(len(x))]
        g = grads(t, y)
        lr_t = lr * (min(1.0, t / warmup_steps) if warmup_steps > 0 else 1.0)
        lr_max = max(lr_max, lr_t)
        weight = t**r * lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum != 0 else 0.0
        for i in range(len(x)):
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            v_hat = v[i] / (1 - beta2**t)
            z[i] = z[i] - lr_t * g[i] / (np.sqrt(v_hat) + eps) - lr_t * weight_decay * y[i]
            x[i] = (1 - c) * x[i] + c * z[i]
    return x


def prodigy(
    p0,
    grads,
    steps,
    *,
    lr=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    weight_decay=0.0,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=math.inf,
):
    # Mishchenko and Defazio 2024, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, the Adam version.
    # konstmish/prodigy: r and s without (1 - beta3) and over d0 (their ratio stays); eps * d with the new d, not d_k.
    # Its branch for beta1 = 0 takes d * g with the new d; here, as in the paper, m = d_k * g for every beta1.
    beta1, beta2 = betas
    if beta3 is None:
        beta3 = math.sqrt(beta2)
    start = _copies(p0)
    p = _copies(p0)
    m, v, s = _zeros(p), _zeros(p), _zeros(p)
    d = d0
    d_max = d0
    r = 0.0
    k = 0
    for t in range(1, steps + 1):
        g = grads(t, p)
        d_k = d
        bias_correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if use_bias_correction else 1.0
        dlr = d_k * lr * bias_correction
        r_next = beta3 * r
        s_norm = 0.0
        for i in range(len(p)):
            r_next = r_next + (d_k / d0) * dlr * np.sum(g[i] * (start[i] - p[i]))
            m[i] = beta1 * m[i] + (1 - beta1) * d_k * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * d_k**2 * g[i] ** 2
            s[i] = beta3 * s[i] + (d_k / d0) * (d_k if safeguard_warmup else dlr) * g[i]
            s_norm = s_norm + np.sum(np.abs(s[i]))
        if s_norm == 0:
            # The authors' code returns here: no step, r and k as they were.
            continue
        r = r_next
        d_hat = d_coef * r / s_norm
        if d_k == d0:
            d = max(d_k, d_hat)
        d_max = max(d_max, d_hat)
        d = min(d_max, d * growth_rate)
        for i in range(len(p)):
            p[i] = p[i] - weight_decay * dlr * p[i]
            p[i] = p[i] - dlr * m[i] / (np.sqrt(v[i]) + d * eps)
        k = k + 1
    return p


def muon(
    p0,
    grads,
    steps,
    *,
    lr=1e-3,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.775, 2.0315),
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn=None,
):
    # Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; weight decay and the two scales as in
    # Liu et al. 2025, Muon is Scalable for LLM Training. The buffer is an average, as in torch, not the paper's sum.
    # The products are in long double: of NumPy's own loops, not of a BLAS, whose sums are another processor's others.
    a, b, c = ns_coefficients
    p = _copies(p0)
    buf = _zeros(p)
    for t in range(1, steps + 1):
        g = grads(t, p)
        for i in range(len(p)):
            rows, columns = p[i].shape
            buf[i] = momentum * buf[i] + (1 - momentum) * g[i]
            x = ((1 - momentum) * g[i] + momentum * buf[i] if nesterov else buf[i]).astype(np.longdouble)
            x = x / max(np.sqrt(np.sum(x**2)), eps)
            for _ in range(ns_steps):
                # An odd polynomial of the singular values: on either side it is the same.
                xtx = x.T @ x
                x = a * x + b * (x @ xtx) + c * (x @ xtx @ xtx)
            if adjust_lr_fn == "match_rms_adamw":
                scale = 0.2 * math.sqrt(max(rows, columns))
            else:
                scale = math.sqrt(max(1.0, rows / columns))
            p[i] = (1 - lr * weight_decay) * p[i] - lr * scale * x.astype(np.float64)
    return p


def lbfgs(
    x0,
    function,
    steps,
    *,
    lr=1.0,
    max_iter=20,
    max_eval=None,
    tolerance_grad=1e-7,
    tolerance_change=1e-9,
    history_size=100,
):
    """Places, evaluations and moves after each step, in long double; `function(x)` gives loss and gradient.

    Its matrix products are loops of NumPy's own, since no BLAS has the type: the same on every processor of a kind.
    """
    # Nocedal and Wright, Numerical Optimization, equations 6.17 and 7.16: H itself, from the last pairs, where the
    # library and torch only ever apply it. What a step is, where it ends and how long its moves are is as in
    # torch.optim.LBFGS without a line search: it evaluates nothing after the last of max_iter moves.
    wide = np.longdouble
    if max_eval is None:
        max_eval = max_iter * 5 // 4
    x = np.array(x0, wide)
    pairs, gamma = [], wide(1)
    s = g_prev = None
    evaluations = moves = 0
    history = []
    for _ in range(steps):
        loss, g = function(x)
        evaluations_before, evaluations = evaluations, evaluations + 1
        for k in range(1, max_iter + 1):
            if np.abs(g).max() <= tolerance_grad:
                break
            moves += 1
            if moves > 1:
                y = g - g_prev
                if y @ s > 1e-10:
                    pairs = [*pairs, (s, y)][-history_size:]
                    gamma = (y @ s) / (y @ y)
            h = gamma * np.eye(x.size, dtype=wide)
            for s_i, y_i in pairs:
                # (1 - rho s yT) H (1 - rho y sT) + rho s sT, multiplied out.
                rho, hy = 1 / (y_i @ s_i), h @ y_i
                h = (
                    h
                    - rho * (np.outer(s_i, hy) + np.outer(hy, s_i))
                    + rho * (1 + rho * (y_i @ hy)) * np.outer(s_i, s_i)
                )
            d = -(h @ g)
            t = min(wide(1), 1 / np.abs(g).sum()) * lr if moves == 1 else wide(lr)
            s, g_prev, loss_prev = t * d, g, loss
            if g @ d > -tolerance_change:
                break
            x = x + s
            if k == max_iter:
                break
            loss, g = function(x)
            evaluations += 1
            if evaluations - evaluations_before >= max_eval:
                break
            if np.abs(s).max() <= tolerance_change or abs(loss - loss_prev) < tolerance_change:
                break
        history.append((x, evaluations, moves))
    return history
