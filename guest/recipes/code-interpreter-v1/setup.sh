# Configures the code interpreter. Run by `sh -eu` as root in the root file system, without network access.

# All users may install packages, also newer versions of those that are part of the template.
find /usr/local -exec chmod a+rwX {} +
