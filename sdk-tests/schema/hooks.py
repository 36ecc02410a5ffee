"""Changes random requests so that some of them create a sandbox."""

import schemathesis

CREATES = {"POST /sandboxes", "POST /v2/sandboxes"}
# Members that are rejected only because a feature is not supported.
REFUSED = {"autoPause", "autoPauseMemory", "autoResume", "network", "volumeMounts", "iam", "envVars"}


@schemathesis.hook
def map_body(context, body):
    """Gives two of three create requests the existing template and a short timeout; does not change the others."""
    is_create = context.operation is not None and context.operation.label in CREATES
    if not is_create or not isinstance(body, dict) or len(repr(body)) % 3 == 0:
        return body
    kept = {name: value for name, value in body.items() if name not in REFUSED}
    timeout = kept.get("timeout", 60)
    return {**kept, "templateID": "base", "timeout": timeout % 300 + 1 if isinstance(timeout, int) else timeout}
