#!/usr/bin/env bash
# Makes sure of what pip cannot install: bootstrap.sh python|kafka
#
# Says in one line what is missing; on Debian as root it installs it.
set -eu

python=${PYTHON:-python3}

require() { # what, then Debian's packages
  what=$1
  shift
  if [ "$(id -u)" = 0 ] && [ -f /etc/debian_version ] && command -v apt-get >/dev/null; then
    echo "$what is missing: installing $* with apt-get" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
  else
    echo "$what is missing: run \`apt-get install $*\` as root, or your system's equivalent" >&2
    exit 1
  fi
}

python_works() {
  "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

java_works() {
  version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
  [ "${version:-0}" -ge 17 ]
}

case ${1:-} in
python)
  python_works || require "Python 3.11 or later with venv" python3 python3-venv
  if ! python_works; then
    echo "$python is older than 3.11: install a newer Python and run \`make PYTHON=<its name>\`" >&2
    exit 1
  fi
  ;;
kafka)
  if ! java_works; then
    java=openjdk-17-jre-headless
    apt-cache show "$java" >/dev/null 2>&1 || java=default-jre-headless
    require "Java 17 or later" "$java"
  fi
  command -v mvn >/dev/null || require "Maven" maven
  ;;
*)
  sed -n 's/^# //p' "$0" >&2
  exit 2
  ;;
esac
