#!/usr/bin/env bash
# Brings what the tests need onto this machine; quick when everything is there. With the argument kms also what `make kms`
# needs, which is not quick the first time; with interop what Synapse and the clients of `make interop` are installed with.
set -eu
cd "$(dirname "$0")/.."

command -v go >/dev/null || { echo "Go 1.26 or newer is missing: see https://go.dev/dl" >&2; exit 1; }

need=""
command -v gcc >/dev/null || need="$need gcc libc6-dev"
command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need="$need postgresql"
if [ "${1:-}" = interop ]; then
	command -v npm >/dev/null || need="$need npm"
fi
if [ -n "${1:-}" ]; then
	python3 -c 'import ensurepip, venv' 2>/dev/null || need="$need python3-venv"
fi
if [ -n "$need" ]; then
	sudo=""
	[ "$(id -u)" = 0 ] || sudo="sudo -n"
	if command -v apt-get >/dev/null && { [ -z "$sudo" ] || $sudo true 2>/dev/null; }; then
		echo "installing$need …"
		$sudo apt-get update -qq
		# shellcheck disable=SC2086
		DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $need >/dev/null
	else
		echo "missing:$need. Install them with your package manager (on Debian: apt-get install$need)" >&2
		exit 1
	fi
fi

# Synapse and the clients are installed by what needs them.
if [ "${1:-}" = kms ]; then set -- -kms; else set --; fi
go run -tags goolm ./keyheraldtest/cmd/test-tools "$@"
