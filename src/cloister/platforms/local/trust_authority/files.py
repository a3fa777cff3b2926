"""Names in the folder of the SIMULATED Trust Authority, through which it, replicas and clients find each other."""

from cloister.platforms import lab_tls

#: The key that callers send; mode 0600.
API_KEY = "api-key"
#: The lab's TLS authority.
TLS_ROOT = lab_tls.AUTHORITY
#: The SIMULATED root of its tokens.
ROOT = "root.pem"
#: The SIMULATED root of the quotes that it accepts, key included.
INTEL_ROOT = "intel-root.pem"
#: What stands for Intel's PCS: collateral, which the simulated platform writes.
PCS = "pcs"
#: {simulated, url}, once it listens.
READY = "service.json"
