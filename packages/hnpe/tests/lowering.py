"""What the cross tests lower for CPU, CUDA and TPU: each public function with arguments, or why not."""

from functools import cache

import jax
import jax.numpy as jnp

from gyri.hnpe import HNPE, JansenRit, ToyModel, log_psd, simulate

MODEL = ToyModel(noise=0.05)


@cache
def posterior(density_estimator):
    sims = simulate(0, MODEL.prior, MODEL, 60, (0, 2))
    estimator = HNPE(MODEL.prior, density_estimator=density_estimator, hidden=(8,), n_features=4)
    return estimator.append_simulations(*sims).train(0, batch_size=20, max_epochs=1, progress=False).build_posterior()


def posterior_case(density_estimator):
    def case():
        trained = posterior(density_estimator)  # here, outside jit

        def function(key, x, x_extra, mask):
            here = trained.condition(x, x_extra, mask)
            theta = here.sample(key, (3,))
            parts = here.log_prob_shared(theta[:, 1:]) + here.log_prob_local(theta[:, :1], theta[:, 1:])
            return theta, here.log_prob(theta) - parts, here.map(key)

        return function, (jax.random.key(0), jnp.ones(1), jnp.ones((2, 1)), jnp.array([True, False]))

    return case


def prior_case():
    def function(key):
        theta = MODEL.prior.sample(key, (3,))
        z, log_det = MODEL.prior.unconstrain(theta)
        local = MODEL.prior.sample_local(key, theta[0, 1:], (2,))
        return MODEL.prior.constrain(z), MODEL.prior.log_prob(theta) + log_det, local

    return function, (jax.random.key(0),)


def toy_case(noise):
    def function(key, x, x_extra):
        model = ToyModel(noise=noise)
        theta = model.posterior_sample(key, (3,), x, x_extra)
        return model(key, theta[0]), model.log_prob(theta, x, x_extra, tol=0.01)

    return lambda: (function, (jax.random.key(0), jnp.ones(1), jnp.ones((2, 1))))


def jansen_rit_case():
    model = JansenRit(duration=0.1, burn_in=0.0)
    loss = lambda theta, key: (model(key, theta).sum(), model.trajectory(key, theta, n_steps=4))
    return jax.grad(loss, has_aux=True), (jnp.array([135.0, 220.0, 2000.0, 0.0]), jax.random.key(0))


# Name of the public function (more than one case: "name[case]"): a factory of (function, arguments).
LOWERED = {
    "gyri.hnpe.HNPEPosterior[nsf]": posterior_case("nsf"),
    "gyri.hnpe.HNPEPosterior[maf]": posterior_case("maf"),
    "gyri.hnpe.HierarchicalPrior": prior_case,
    "gyri.hnpe.JansenRit": jansen_rit_case,
    "gyri.hnpe.ToyModel[noise]": toy_case(0.05),
    "gyri.hnpe.ToyModel[no noise]": toy_case(0.0),
    "gyri.hnpe.log_psd": lambda: (log_psd, (jnp.ones((2, 130)),)),
}

# Name of the public function: why it never runs inside jit.
HOST_SIDE = {
    "gyri.hnpe.HNPE": "a front door: simulates and trains from the host",
    "gyri.hnpe.pairplot": "draws a figure",
    "gyri.hnpe.sbc": "a front door: its compiled part is the posterior's",
    "gyri.hnpe.simulate": "a front door: runs compiled batches from the host",
}
