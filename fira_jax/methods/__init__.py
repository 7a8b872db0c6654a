"""The published methods, each a chain of the pieces."""

from fira_jax.methods.adadagrad import adadagrad as adadagrad
from fira_jax.methods.adadagrad import scale_by_adagrad_norm as scale_by_adagrad_norm
from fira_jax.methods.adarankgrad import adarankgrad as adarankgrad
from fira_jax.methods.alice import alice as alice
from fira_jax.methods.apollo import apollo as apollo
from fira_jax.methods.apollo import apollo_mini as apollo_mini
from fira_jax.methods.dct_adamw import dct_adamw as dct_adamw
from fira_jax.methods.fira import fira as fira
from fira_jax.methods.frugal import frugal as frugal
from fira_jax.methods.galore import galore as galore
from fira_jax.methods.galore2 import galore2 as galore2
from fira_jax.methods.gradnormlorp import gradnormlorp as gradnormlorp
from fira_jax.methods.gwt import gwt as gwt
from fira_jax.methods.ldadam import ldadam as ldadam
from fira_jax.methods.lora_pro import lora_pro as lora_pro
from fira_jax.methods.lotus import lotus as lotus
from fira_jax.methods.m_fac import m_fac as m_fac
from fira_jax.methods.m_fac import scale_by_m_fac as scale_by_m_fac
from fira_jax.methods.q_galore import q_galore as q_galore
from fira_jax.methods.racs import racs as racs
from fira_jax.methods.scale import scale as scale
from fira_jax.methods.sinkgd import sinkgd as sinkgd
from fira_jax.methods.subtrack import subtrack as subtrack
from fira_jax.methods.swan import swan as swan
from fira_jax.methods.trion import trion as trion
from fira_jax.methods.vlorp import vlorp as vlorp
