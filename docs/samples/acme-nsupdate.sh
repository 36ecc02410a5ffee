#!/bin/sh
# For --acme-hook: sets and removes a TXT record by dynamic updates (RFC 2136), as BIND, Knot and PowerDNS take them.
# It needs nsupdate (Debian's bind9-dnsutils), and a key that may change TXT records of `_acme-challenge.DOMAIN`.
set -eu

# Set these. The key is what `tsig-keygen acme` prints; nobody but the user who runs Hearth should be able to read it.
server=ns1.example.com
port=53
key=/etc/hearth/acme.key

case $1 in
    set) change="add $2. 60 TXT \"$3\"" ;;
    # This value only: the domain and *.domain are proved at the same time.
    remove) change="delete $2. TXT \"$3\"" ;;
    *) echo "usage: $0 set|remove NAME VALUE" >&2; exit 2 ;;
esac

nsupdate -k "$key" <<END
server $server $port
update $change
send
END
