#!/bin/sh
# The first installation of gpushare on a host:
#
#   sudo sh deploy/install.sh SOURCE [PIP_ARG...]
#
# SOURCE is a wheel, a source directory, or a version. What follows goes to pip, e.g. --no-index --find-links DIR on a
# host without network. Later versions: `gpushare host upgrade`. It makes /opt/gpushare/versions/VERSION, the link
# /opt/gpushare/current, and links to the programs in /usr/local/bin; GPUSHARE_ROOT=DIR has all of it below DIR. Nothing
# is started.
set -eu

[ $# -ge 1 ] || { echo "usage: install.sh WHEEL|DIR|VERSION [PIP_ARG...]" >&2; exit 2; }
source=$1
shift
root=${GPUSHARE_ROOT:-}
python=${PYTHON:-python3}

"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "install.sh: $python is older than 3.11 (name a newer one: PYTHON=python3.11 sh install.sh ...)" >&2; exit 1; }
"$python" -I -c 'import venv, ensurepip' 2>/dev/null ||
    { echo "install.sh: $python has no venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# Everybody's gpushare runs on this Python.
closed=$("$python" -I -c '
import os, sys
path = os.path.realpath(sys.executable)
while path != "/":
    path = os.path.dirname(path)
    if not os.stat(path).st_mode & 1:
        print(path)
        break
')
if [ -n "$closed" ] && [ -z "$root" ]; then
    echo "install.sh: $python lies below $closed, which other users cannot enter: name another Python, e.g." \
        "PYTHON=/usr/bin/python3 sh install.sh ..." >&2
    exit 1
fi

# The program installs itself: a copy that is thrown away makes the one that stays.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -I -m venv "$scratch/venv"
case $source in
[0-9]*) wanted="gpushare-cluster==$source" ;;
*) wanted=$source ;;
esac
echo "fetching $wanted and what it needs, in a directory that is thrown away"
"$scratch/venv/bin/pip" --disable-pip-version-check install --quiet "$@" "$wanted"
echo "installing it for good; this takes a minute or two"
"$scratch/venv/bin/gpushare" host upgrade ${root:+--root "$root"} "$source" -- "$@"

mkdir -p "$root/usr/local/bin"
for program in gpushare gpushare-agent gpushare-scheduler gpushare-simwork; do
    ln -sfn "/opt/gpushare/current/bin/$program" "$root/usr/local/bin/$program"
done
echo "installed; next: gpushare-scheduler install, or gpushare-agent install --join -"
