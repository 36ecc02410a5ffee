"""What random data alone does not find: requests that get as far as a sandbox."""

import schemathesis

CREATES = {"POST /sandboxes", "POST /v2/sandboxes"}
# What is refused only because a feature is not supported.
REFUSED = {"autoPause", "autoPauseMemory", "autoResume", "network", "volumeMounts", "iam", "envVars"}


@schemathesis.hook
def map_body(context, body):
    """Two of three creates are of the template that there is, and short; the others stay as they are."""
    is_create = context.operation is not None and context.operation.label in CREATES
    if not is_create or not isinstance(body, dict) or len(repr(body)) % 3 == 0:
        return body
    kept = {name: value for name, value in body.items() if name not in REFUSED}
    timeout = kept.get("timeout", 60)
    return {**kept, "templateID": "base", "timeout": timeout % 300 + 1 if isinstance(timeout, int) else timeout}
