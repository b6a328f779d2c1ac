# Sourced by the commands beside it: sets ROOT, VENV and PYTHON, and makes ROOT/.venv from
# requirements.lock where it is missing, half-made or stale. When nothing is to be done it costs a
# few milliseconds and starts no Python. Written for bash 3.2, which macOS has.
#
#   .venv/tf_dpdiff_stamp    written last: the checkout, lock and interpreter .venv was made for
#   .venv/tf_dpdiff_partial  there while packages are written; found later, the set-up was killed
#   .venv/setup.log          what the installer said
#   .venv.lock               held by the one command that sets up
#
# TF_DPDIFF_PYTHON=3.12, or an absolute path, chooses the Python; where .venv is of another, it is made anew.

ROOT=$(CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python

say() { printf 'tf_dpdiff: %s\n' "$*" >&2; }

has_uv() { uv --version </dev/null >/dev/null 2>&1; }

lock_sum() { cksum <"$ROOT/requirements.lock"; }

# Whether .venv is of the Python that the caller asks for. Only a path that leads to .venv's Python by a
# script (a pyenv shim) is started to see where it leads.
is_asked_for() {
  local asked=${TF_DPDIFF_PYTHON-}
  case $asked in
    '') ;;
    /*) [[ $PYTHON -ef $asked || $PYTHON -ef $("$asked" -I -c 'import sys; print(sys.executable)' 2>/dev/null) ]] ;;
    *) [[ -d $VENV/lib/python$asked ]] ;;
  esac
}

is_ready() {
  local root='' lock='' interpreter=''
  [[ -x $PYTHON && -f $VENV/tf_dpdiff_stamp && ! -e $VENV/tf_dpdiff_partial ]] || return 1
  { IFS= read -r root && IFS= read -r lock && IFS= read -r interpreter; } \
    <"$VENV/tf_dpdiff_stamp" || return 1
  # A system upgrade may point .venv/bin/python at another Python: compare files, not names.
  [[ $root == "$ROOT" && $lock == "$(lock_sum)" && $PYTHON -ef $interpreter ]] && is_asked_for
}

# Runs the Python $1 to see that it starts (a pyenv shim may not), that it is 3.11 to 3.13 and, where
# pip will do the work, that it has pip's installer (Debian packs it apart). $2: one more condition.
is_right_python() {
  local modules='venv, ensurepip'
  if has_uv; then modules=os; fi
  "$1" -I -c "import os, sys, sysconfig, $modules
sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and ${2:-True}))" \
    "$VENV" </dev/null >/dev/null 2>&1
}

# The newest first: it gets security fixes for the longest time, and all of the lock has wheels for it.
find_python() {
  local asked=${TF_DPDIFF_PYTHON-} condition='' name candidate
  local names=(python3.13 python3.12 python3.11 python3 python)
  case $asked in
    /*) names=("$asked") ;;
    ?*)
      names=("python$asked" python3 python)
      condition="sys.version_info[:2] == (3, ${asked#3.})"
      ;;
  esac
  for name in "${names[@]}"; do
    while IFS= read -r candidate; do
      # .venv may be active, and is about to be deleted.
      [[ $(dirname -- "$candidate") -ef $VENV/bin ]] && continue
      if is_right_python "$candidate" "$condition"; then
        printf '%s\n' "$candidate"
        return
      fi
    done < <(type -aP "$name")
  done
  return 1
}

# Neither killed at work, nor moved with its checkout, nor bound to another Python. An environment
# made by hand, which has no stamp, passes.
is_repairable() {
  local root=$ROOT
  [[ -x $PYTHON && ! -e $VENV/tf_dpdiff_partial ]] || return 1
  if [[ -f $VENV/tf_dpdiff_stamp ]]; then IFS= read -r root <"$VENV/tf_dpdiff_stamp"; fi
  [[ $root == "$ROOT" ]] && is_asked_for && is_right_python "$PYTHON" \
    'os.path.samefile(sys.prefix, sys.argv[1]) and os.path.isdir(sysconfig.get_path("purelib"))'
}

create() {  # $1: a Python, or with uv a version to fetch.
  if has_uv; then
    uv venv --allow-existing --python "$1" "$VENV"
  else
    "$1" -I -m venv --without-pip "$VENV"  # prepare adds pip.
  fi
}

# `install`, not `sync`: what a user added, such as the CUDA libraries, stays. The lock is complete, so
# nothing is resolved: tensorflow-privacy asks for versions that are long past (setup.cfg says more).
# Nothing is compiled: wheels alone, but for promise and jsonpath-rw, which are pure Python and have none.
install() {  # $1: all or some of requirements.lock
  local options=(--require-hashes --no-deps --no-build-isolation --only-binary :all:)
  options+=(--no-binary promise --no-binary jsonpath-rw -r "$1")
  if has_uv; then
    uv pip install --python "$PYTHON" "${options[@]}"
  else
    "$PYTHON" -I -m pip install --disable-pip-version-check --progress-bar off --ignore-requires-python \
      "${options[@]}"
  fi
}

# These two are built by the setuptools of the lock, which so comes first, and not by one without a hash.
prepare() {  # $1: what create needs.
  { [[ -f $VENV/pyvenv.cfg ]] || create "$1"; } &&
    { has_uv || "$PYTHON" -I -m pip --version || "$PYTHON" -I -m ensurepip; } &&
    awk '/^[a-z]/ { keep = /^setuptools==/ } keep' requirements.lock >"$VENV/setuptools.lock" &&
    install "$VENV/setuptools.lock"
}

# Passes on what the installer says, and tells how far it is: on a terminal in one line that is
# rewritten, elsewhere for packages of 100 MB and more and every 20 seconds.
show_progress() {
  local line what='' done=0 all=0 kind='large packages' next=$((SECONDS + 20))
  local large='*[(][0-9][0-9][0-9].[0-9]*M*'
  if ! has_uv; then all=$(grep -c '^[a-z].*==' requirements.lock) kind=packages; fi
  while IFS= read -r line || [[ $line ]]; do
    printf '%s\n' "$line"
    case $line in
      'Ignoring '*) all=$((all - 1)) ;;  # pip fetches one by one.
      'Requirement already '*) done=$((done + 1)) ;;
      'Collecting '*) done=$((done + 1)) what=${line#* } what=${what%% *} ;;
      '  Downloading '*) what="$what (${line##*(}" ;;
      'Downloading '*)  # uv fetches many at once, and names the large ones.
        all=$((all + 1))
        if [[ $what != $large ]]; then what=${line#* }; fi
        ;;
      ' Downloaded '*) done=$((done + 1)) ;;
      'Installing collected '* | 'Prepared '*) what='all fetched, now written to .venv' ;;
      *) continue ;;
    esac
    if [[ ! $what ]]; then
      continue
    elif [[ -t 2 ]]; then
      printf '\r\033[Ktf_dpdiff: %.68s' "$done of $all $kind: $what" >&2
    elif [[ $line == $large ]] || ((SECONDS >= next)); then
      say "$done of $all $kind: $what"
      next=$((SECONDS + 20))
    fi
  done
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

# A .pth file, not PYTHONPATH, so that `python -I` works: neither the working folder nor a user's
# own packages can then shadow ours.
finish() {
  local interpreter
  interpreter=$("$PYTHON" -I -c '
import os, sys, sysconfig
with open(os.path.join(sysconfig.get_path("purelib"), "tf_dpdiff.pth"), "w") as pth:
    pth.write(sys.argv[1] + "\n")
print(os.path.realpath(sys.executable))' "$ROOT") &&
    printf '%s\n' "$ROOT" "$1" "$interpreter" >"$VENV/tf_dpdiff_stamp" &&
    rm "$VENV/tf_dpdiff_partial"
}

attempt() {  # $1: what create needs; $2: the sum of the lock.
  prepare "$1" >>"$VENV/setup.log" 2>&1 </dev/null &&
    install requirements.lock 2>&1 </dev/null | show_progress >>"$VENV/setup.log" &&
    finish "$2" >>"$VENV/setup.log" 2>&1 </dev/null
}

# Goes on after a cut connection: what was fetched lies in the cache of pip or uv. Without any connection
# from the start there is nothing to wait for.
attempt_until_done() {
  local pause before said cut='retry|retries|connection|timed out|timeout|incompleteread|failed to fetch|dns error'
  for pause in 5 15 30 60 ''; do
    before=$(wc -l <"$VENV/setup.log")
    if attempt "$@"; then return; fi
    said=$(tail -n "+$((before + 1))" "$VENV/setup.log")
    # pip 24 takes a file that was cut off for a whole one, of the wrong hash: worth another two attempts.
    if [[ $said != *'  Downloading '*'DO NOT MATCH THE HASHES'* || $pause != *5 ]]; then
      if ! grep -iE "$cut" <<<"$said" >/dev/null; then
        tail -n 25 "$VENV/setup.log" >&2
        say "could not set up .venv; the whole log is in $VENV/setup.log"
        return 1
      elif [[ ! $pause ]] || ! grep Downloading "$VENV/setup.log" >/dev/null; then
        say "no connection to what .venv is made from: call again with one; what was fetched is kept" \
          "(log: $VENV/setup.log)"
        return 1
      fi
    fi
    say "the connection was cut; going on in $pause s"
    sleep "$pause"
  done
}

set_up() {
  local asked=${TF_DPDIFF_PYTHON-} python='' repair='' started=$SECONDS
  if is_ready; then return; fi  # Another command did it while this one waited for the lock.
  # An installer must not be told by the caller's environment to work elsewhere.
  unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON
  set -o pipefail
  cd "$ROOT"
  if [[ $asked && $asked != /* && $asked != 3.1[1-3] ]]; then
    say "TF_DPDIFF_PYTHON=$asked must be 3.11, 3.12, 3.13 or the absolute path of such a Python"
    return 1
  elif is_repairable; then
    repair=yes
    say 'bringing .venv up to requirements.lock (up to 5 minutes and 0.9 GB to fetch)'
  elif python=$(find_python) || { [[ $asked != /* ]] && has_uv; }; then
    say 'making .venv from requirements.lock (0.9 GB to fetch, 3.1 GB on disk, 1 to 5 minutes)'
    rm -rf "$VENV"
    mkdir "$VENV"
  elif [[ $asked ]]; then
    say "TF_DPDIFF_PYTHON=$asked: found no such Python of 3.11 to 3.13 that starts and has its venv module"
    return 1
  else
    say "needs Python 3.11, 3.12 or 3.13 with its venv module, and found none: install one" \
      "('apt install python3-venv', 'brew install python@3.13') or uv (https://docs.astral.sh/uv)"
    return 1
  fi
  : >"$VENV/tf_dpdiff_partial"
  : >"$VENV/setup.log"
  if attempt_until_done "${python:-${asked:->=3.11,<3.14}}" "$(lock_sum)"; then
    say ".venv is ready ($((SECONDS - started)) s)"
    return
  fi
  # An installer that gives up, offline say, leaves whole packages: what was usable stays usable.
  if [[ $repair ]]; then rm -f "$VENV/tf_dpdiff_stamp" "$VENV/tf_dpdiff_partial"; fi
  return 1
}

if ! is_ready; then
  (
    # Without flock (macOS) nothing stops two first runs at once.
    if command -v flock >/dev/null && ! flock -n 9; then
      say 'waiting for another command that sets up .venv'
      flock 9
    fi
    set_up
  ) 9>"$ROOT/.venv.lock"
fi
