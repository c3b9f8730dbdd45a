# shellcheck shell=bash
# Shared by the scripts here; source it.  It finds or installs a PostgreSQL
# server of the wanted version, and copies the checkout to where an ordinary
# user can build it.  Nothing is installed into the system's PostgreSQL, and no
# cluster but the scripts' own is touched.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TREES=/var/cache/coord-test

# Where this user's builds and results are kept between runs; COORD_CACHE puts
# them elsewhere, so that two checkouts can be tested side by side.
if [ -n "${COORD_CACHE:-}" ]; then
  CACHE=$COORD_CACHE
elif [ "$(id -u)" = 0 ]; then
  CACHE=/var/cache/coord-test
else
  CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/coord-test
fi

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

note() {
  echo "== $*"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    command -v sudo >/dev/null || die "needs root or sudo for: $*"
    sudo "$@"
  fi
}

# COORD_* variables of the environment, which all scripts hand on.
coord_env() {
  env -0 | { grep -z '^COORD_' || true; } | tr '\0' '\n'
}

# Runs a command in a clean environment as an ordinary user, for initdb and
# postgres refuse root: "postgres" when called by root, else the caller.
# Descriptor 9 is the lock of lock_work, which no server may inherit.
as_builder() {
  local run=(env -i "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" LANG=C.UTF-8
    "HOME=$CACHE" "TERM=${TERM:-dumb}")
  local var
  while read -r var; do run+=("$var"); done < <(coord_env)
  if [ "$(id -u)" = 0 ]; then run=(runuser -u postgres -- "${run[@]}"); fi
  "${run[@]}" "$@" 9>&-
}

# Makes directory $1, which the builder owns, and waits until no other run uses
# it.
lock_work() {
  mkdir -p "$1"
  if [ "$(id -u)" = 0 ]; then chown postgres: "$1"; fi
  exec 9>"$1.lock"
  flock -n 9 || { note "waiting for another run to finish" && flock 9; }
}

# The checkout, without what git ignores, as the builder's directory $1.
# Objects from an earlier run stay there, so a second run compiles little; what has
# changed gets the time of the copy, for a checkout may be older than the objects.
copy_source() {
  local opts=(-rlp --checksum --delete --chmod=u+rwX "--filter=:- .gitignore" --exclude=/.git)
  if [ "$(id -u)" = 0 ]; then opts+=(--owner --group --chown=postgres:postgres); fi
  rsync "${opts[@]}" "$TOP/" "$1/"
}

### Which server

codename() {
  (. /etc/os-release && echo "${VERSION_CODENAME:-}")
}

# The Debian release that ships PostgreSQL $1.
suite_of() {
  case $1 in
    15) echo bookworm ;;
    17) echo trixie ;;
    18) echo forky ;;
    19) echo experimental ;;
    16) die "PostgreSQL 16 is in no Debian release" ;;
    *) die "unknown PostgreSQL version: $1" ;;
  esac
}

# The version that goes with this machine.
default_pg() {
  case $(codename) in
    trixie) echo 17 ;;
    forky) echo 18 ;;
    *) echo 15 ;;
  esac
}

pg_bindir() {
  echo "/usr/lib/postgresql/$1/bin"
}

# Can PostgreSQL $1 be had on this machine itself?
host_has() {
  [ -n "${COORD_TREE:-}" ] || [ "$(suite_of "$1")" = "$(codename)" ] ||
    { [ -x "$(pg_bindir "$1")/postgres" ] && [ -x "$(pg_bindir "$1")/pg_config" ]; }
}

### Packages

# Installs those of the packages that are missing.
install_packages() {
  local pkg missing=()
  for pkg; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$pkg" 2>/dev/null)" = installed ] ||
      missing+=("$pkg")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "not a Debian system; please install: ${missing[*]}"
  note "installing ${missing[*]}"
  as_root bash -euo pipefail -c "$(declare -f apt_quietly); apt_quietly \"\$@\"" - "${missing[@]}" \
    </dev/null || die "could not install ${missing[*]}"
}

# Debian's packages make a cluster and start services.  This does neither: two
# files, there only while apt runs, say so to them.
apt_quietly() {
  local cluster=/etc/postgresql-common/createcluster.d/coord-test.conf
  local policy=/usr/sbin/policy-rc.d log
  local undo=("$cluster")
  log=$(mktemp)
  undo+=("$log")
  mkdir -p "${cluster%/*}"
  echo "create_main_cluster = false" >"$cluster"
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    undo+=("$policy")
  fi
  # shellcheck disable=SC2064
  trap "rm -f ${undo[*]}" EXIT
  trap 'exit 130' INT TERM

  export DEBIAN_FRONTEND=noninteractive
  # A source that cannot be reached matters only if a package is missing for it.
  apt-get -q update >"$log" 2>&1 || true
  apt-get -qy --no-install-recommends install "$@" >>"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; exit 1; }
  case " $* " in
    *" pgbouncer "*) update-rc.d pgbouncer disable >/dev/null 2>&1 || true ;;
  esac
}

# What building needs and running the server of version $1.
server_packages() {
  echo gcc make libc6-dev rsync "postgresql-$1" "postgresql-server-dev-$1"
}

# What the tests of PostgreSQL $1 need besides.
test_packages() {
  echo perl libipc-run-perl libdbd-pg-perl pgbouncer python3-psycopg
  case $1 in
    15 | 17 | 18) echo "postgresql-$1-cron" ;;
  esac
}

# Node.js and its driver pg.  Debian's driver wants Debian's Node.js; to another one
# comes npm's driver, in directory $1.
install_node_pg() {
  local maintainer
  maintainer=$(dpkg-query -W -f='${Maintainer}' nodejs 2>/dev/null) || true
  if [[ -z $maintainer || $maintainer == *[Dd]ebian* ]]; then
    install_packages nodejs node-pg
  elif [ ! -d "$1/node_modules/pg" ]; then
    note "installing pg for Node.js"
    mkdir -p "$1"
    npm install --silent --no-audit --no-fund --prefix "$1" pg@8 </dev/null || die "could not install pg for Node.js"
  fi
}

### Trees: other Debian releases, as directories to chroot into

# The mirror that this machine uses for Debian itself.
debian_mirror() {
  local url
  # shellcheck disable=SC2016
  url=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$(codename)" '$1 == release && !seen++ { print $2 }')
  echo "${url:-http://deb.debian.org/debian}"
}

# Makes directory $2 a minimal Debian that has packages for PostgreSQL $1.
make_tree() {
  local pg=$1 tree=$2 suite mirror suites script line
  suite=$(suite_of "$pg")
  suites=$suite
  if [ "$suite" = experimental ]; then suites="sid experimental"; fi
  mirror=$(debian_mirror)
  install_packages debootstrap

  note "making a Debian tree ($suites) in $tree"
  # A debootstrap older than the release knows only what it is called today.
  script=/usr/share/debootstrap/scripts/${suites%% *}
  [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
  as_root rm -rf "$tree.new"
  as_root mkdir -p "$tree.new"
  as_root debootstrap --variant=minbase "${suites%% *}" "$tree.new" "$mirror" "$script" \
    >/dev/null </dev/null || { as_root tail -n 20 "$tree.new/debootstrap/debootstrap.log" >&2; die "debootstrap failed"; }
  for line in $suites; do echo "deb $mirror $line main"; done |
    as_root tee "$tree.new/etc/apt/sources.list" >/dev/null
  # experimental's packages are taken only when asked for by name, or so:
  printf '%s\n' "Package: src:postgresql-$pg" "Pin: release a=experimental" "Pin-Priority: 500" |
    as_root tee "$tree.new/etc/apt/preferences.d/coord-test" >/dev/null
  {
    # unstable's indexes expire within a week; a mirror may lag behind
    echo 'Acquire::Check-Valid-Until "false";'
    apt-config dump --format '%f "%v";%n' Acquire::http::Proxy
    echo 'APT::Keep-Downloaded-Packages "false";'
  } | as_root tee "$tree.new/etc/apt/apt.conf.d/90coord-test" >/dev/null
  as_root mv "$tree.new" "$tree"
}

# Runs script $2 of this checkout, with the arguments after it, in the tree for
# PostgreSQL $1.  There it finds itself on a Debian machine of its own.
run_in_tree() {
  local pg=$1 tree=$TREES/tree-$1 env var
  shift
  as_root unshare --mount --pid --fork true ||
    die "PostgreSQL $pg needs a tree of Debian $(suite_of "$pg"), and this machine does not let $(id -un) mount"
  [ -d "$tree" ] || make_tree "$pg" "$tree"
  install_packages rsync
  as_root rsync -rlpt --delete "--filter=:- .gitignore" --exclude=/.git "$TOP/" "$tree/root/coord/"
  if [ -e /etc/resolv.conf ]; then as_root cp /etc/resolv.conf "$tree/etc/resolv.conf"; fi
  env=(env -i "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    LANG=C.UTF-8 HOME=/root "TERM=${TERM:-dumb}" "COORD_TREE=$tree")
  while read -r var; do env+=("$var"); done < <(coord_env)
  # Mounts, and servers that a killed run leaves behind, end with the namespace.
  # shellcheck disable=SC2016
  as_root unshare --mount --pid --fork --kill-child sh -euc '
    mount --rbind /dev "$1/dev"
    mount -t proc proc "$1/proc"
    exec chroot "$@"' sh "$tree" "${env[@]}" "/root/coord/scripts/$1" "${@:2}"
}

### Building, as the builder

# Builds the copy of the source in $2/src for PostgreSQL $1, with make's
# arguments after it, and installs it below $2/stage.  make does not see changed
# flags, so with other ones than last time it starts anew.
build_and_stage() {
  local pg=$1 work=$2
  shift 2
  local make=(make -s -C "$work/src" with_llvm=no "PG_CONFIG=$(pg_bindir "$pg")/pg_config" "$@")
  local flags
  flags=$(echo "$*" && coord_env && cat "$work/src/Makefile")
  if [ "$flags" != "$(cat "$work/flags" 2>/dev/null)" ]; then
    "${make[@]}" clean
    echo "$flags" >"$work/flags"
  fi
  rm -rf "$work/stage" "$work/src/coord.so"
  { "${make[@]}" -j"$(nproc)" all && "${make[@]}" install "DESTDIR=$work/stage"; } 2>&1 |
    tee "$work/build.log"
}

# Server settings that make PostgreSQL $1 find what is installed below $2.
# (Up to 17 by a patch of Debian's, from 18 by a setting of PostgreSQL's.)
stage_settings() {
  if [ "$1" -ge 18 ]; then
    echo "extension_control_path = '$2/usr/share/postgresql/$1:\$system'"
  else
    echo "extension_destdir = '$2'"
  fi
  echo "dynamic_library_path = '$2/usr/lib/postgresql/$1/lib:\$libdir'"
}
