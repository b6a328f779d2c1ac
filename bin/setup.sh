# Sourced by the commands beside it: sets ROOT, VENV and PYTHON, and makes ROOT/.venv from
# requirements.lock where it is missing, half-made or stale. When nothing is to be done it costs a
# few milliseconds and starts no Python. Written for bash 3.2, which macOS has.
#
#   .venv/tf_dpdiff_stamp    written last: the checkout, lock and interpreter .venv was made for
#   .venv/tf_dpdiff_partial  there while packages are written; found later, the set-up was killed
#   .venv/setup.log          what the installer said
#   .venv.lock               held by the one command that sets up

ROOT=$(CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python

say() { printf 'tf_dpdiff: %s\n' "$*" >&2; }

has_uv() { uv --version </dev/null >/dev/null 2>&1; }

lock_sum() { cksum <"$ROOT/requirements.lock"; }

is_ready() {
  local root='' lock='' interpreter=''
  [[ -x $PYTHON && -f $VENV/tf_dpdiff_stamp && ! -e $VENV/tf_dpdiff_partial ]] || return 1
  { IFS= read -r root && IFS= read -r lock && IFS= read -r interpreter; } \
    <"$VENV/tf_dpdiff_stamp" || return 1
  # A system upgrade may point .venv/bin/python at another Python: compare files, not names.
  [[ $root == "$ROOT" && $lock == "$(lock_sum)" && $PYTHON -ef $interpreter ]]
}

# Runs the Python $1 to see that it starts (a pyenv shim may not), that it is 3.9 to 3.11 and, where
# pip will do the work, that it has pip's installer (Debian packs it apart). $2: one more condition.
is_right_python() {
  local modules='venv, ensurepip'
  if has_uv; then modules=os; fi
  "$1" -I -c "import os, sys, sysconfig, $modules
sys.exit(not ((3, 9) <= sys.version_info < (3, 12) and ${2:-True}))" \
    "$VENV" </dev/null >/dev/null 2>&1
}

find_python() {
  local name candidate
  for name in python3.11 python3.10 python3.9 python3 python; do
    while IFS= read -r candidate; do
      # .venv may be active, and is about to be deleted.
      [[ $(dirname -- "$candidate") -ef $VENV/bin ]] && continue
      if is_right_python "$candidate"; then
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
  [[ $root == "$ROOT" ]] && is_right_python "$PYTHON" \
    'os.path.samefile(sys.prefix, sys.argv[1]) and os.path.isdir(sysconfig.get_path("purelib"))'
}

create() {  # $1: a Python, or with uv a version to fetch.
  if has_uv; then
    uv venv --allow-existing --python "$1" "$VENV"
  else
    "$1" -I -m venv --without-pip "$VENV"  # install adds pip.
  fi
}

# `install`, not `sync`: what a user added, such as the CUDA libraries, stays.
install() {
  if has_uv; then
    uv pip install --python "$PYTHON" --require-hashes -r requirements.lock
  else
    { "$PYTHON" -I -m pip --version || "$PYTHON" -I -m ensurepip; } &&
      "$PYTHON" -I -m pip install --disable-pip-version-check --require-hashes --no-deps \
        -r requirements.lock
  fi
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

set_up() {
  local python='' sum repair='' started=$SECONDS
  if is_ready; then return; fi  # Another command did it while this one waited for the lock.
  # An installer must not be told by the caller's environment to work elsewhere.
  unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON
  cd "$ROOT"
  sum=$(lock_sum)
  if is_repairable; then
    repair=yes
    say 'bringing .venv up to requirements.lock (up to 5 minutes)'
  elif python=$(find_python) || has_uv; then
    say 'making .venv from requirements.lock (about 2.4 GB, 2 to 5 minutes)'
    rm -rf "$VENV"
    mkdir "$VENV"
  else
    say "needs Python 3.9, 3.10 or 3.11 with its venv module, and found none: install one" \
      "('apt install python3.11-venv', 'brew install python@3.11') or uv (https://docs.astral.sh/uv)"
    return 1
  fi
  : >"$VENV/tf_dpdiff_partial"
  if { [[ $repair ]] || create "${python:->=3.9,<3.12}"; } >"$VENV/setup.log" 2>&1 </dev/null &&
    { install && finish "$sum"; } >>"$VENV/setup.log" 2>&1 </dev/null; then
    say ".venv is ready ($((SECONDS - started)) s)"
    return
  fi
  tail -n 15 "$VENV/setup.log" >&2
  say "could not set up .venv; the whole log is in $VENV/setup.log"
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
