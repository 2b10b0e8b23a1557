#!/bin/sh
# fetch-debian.sh DIR PROGRAM SUITES PACKAGE
# Unpacks PACKAGE and everything it depends on below DIR and writes DIR/PROGRAM-NAME, a wrapper that runs PROGRAM with
# those libraries. The system's own packages, lists and caches are not touched. SUITES: Debian suites, as in
# "sid experimental"; "." is the system's own. With "-" as PROGRAM there is no wrapper, and PACKAGE is a regular expression:
# the newest package with such a name is unpacked alone.
set -eu
dir=$(realpath -m "$1") program=$2 suites=$3 package=$4
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
say() { echo "fetch-debian: $*" >&2; }
command -v apt-get >/dev/null && [ -f $keyring ] || { say "not a Debian system: cannot fetch $package"; exit 1; }
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)' | grep "|$codename\$" | head -n 1 | cut -d'|' -f1)
[ -n "$mirror" ] || { say "no mirror of $codename in the system's sources"; exit 1; }
[ "$suites" = . ] && suites=$codename

rm -rf "$dir.partial"
apt=$dir.partial/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$dir.partial/root"
for suite in $suites; do echo "deb [signed-by=$keyring] $mirror $suite main"; done >"$apt/sources.list"
options="-qq -o APT::Sandbox::User=root -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=- \
 -o Dir::State::Lists=$apt/lists -o Dir::State::status=/dev/null -o Dir::Cache::archives=$apt/archives \
 -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="
# shellcheck disable=SC2086
{
  apt-get $options update
  if [ "$program" = - ]; then
    package=$(apt-cache $options pkgnames | grep -xE "$package" | sort -V | tail -n 1)
    [ -n "$package" ] || { say "no such package in $suites: $4"; exit 1; }
    names=
  else
    names=$(apt-cache $options depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "${package%/*}" | grep '^[a-z0-9]' | grep -vx "${package%/*}" | sort -u)
  fi
  cd "$apt/archives"
  # A dependency on a virtual package has no candidate of its own: leave it out.
  real=
  [ -z "$names" ] || real=$(apt-cache $options policy $names | awk '/^[a-z0-9]/ { name = $1; sub(/:$/, "", name) } /Candidate: [0-9]/ { print name }')
  apt-get $options download "$package" $real
  cd - >/dev/null
}
for deb in "$apt"/archives/*.deb; do dpkg-deb -x "$deb" "$dir.partial/root"; done
rm -rf "$apt"
[ "$program" = - ] || cat >"$dir.partial/$(basename "$program")" <<EOF
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")/root
for lib in "\$root"/usr/lib/*-linux-gnu; do :; done
for loader in "\$lib"/ld-linux-*.so.* "\$root"/lib/*-linux-gnu/ld-linux-*.so.*; do [ -e "\$loader" ] && break; done
exec "\$loader" --library-path "\$lib:\$root/lib/\${lib##*/}" "\$root$program" "\$@"
EOF
[ "$program" = - ] || chmod +x "$dir.partial/$(basename "$program")"
rm -rf "$dir"
mv "$dir.partial" "$dir"
