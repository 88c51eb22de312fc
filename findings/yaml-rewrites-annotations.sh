#!/usr/bin/env bash
# yaml-rewrites-annotations: what sigs.k8s.io/yaml makes of an annotation's value that nobody has put in quotes.
#
# sigs.k8s.io/yaml v1.6.0, UnmarshalStrict into a map[string]string, as a program reads a manifest into its own types.
# Guess: a value that YAML takes for a truth or a number is an error ("cannot unmarshal bool into string"), as it is for
#   the API server.
# Seen:  it is not an error. The value becomes YAML's idea of it, rewritten: yes, on and y are "true", 1.10 is "1.1",
#   012 is "10" (octal), 1e3 is "1000", ~ is "". A number with a fraction passes through 32 bits on its way: 16777217.5
#   is "1.6777218e+07". 1:30 and 2026-11-29 stay as they are. The same is done to keys. So a manifest that a tool has read
#   and found good is refused by the API server, or reaches it with another value than the one that was written.
# Exits 1 if that has changed. Needs Go 1.21 or later and the module proxy.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.25.0

require sigs.k8s.io/yaml v1.6.0
END

cat >main.go <<'END'
package main

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

type meta struct{ Annotations map[string]string }

func main() {
	values := "true yes on y ~ 1e3 012 0x1F 1_000 1.10 1.0 16777217.5 1e21 12345678901234567890 1:30 2026-11-29 [a]"
	for value := range strings.FieldsSeq(values) {
		var m meta
		if err := yaml.UnmarshalStrict([]byte("annotations: {k: "+value+"}"), &m); err != nil {
			fmt.Println(value, "is an error")
			continue
		}
		fmt.Printf("%s is %q\n", value, m.Annotations["k"])
	}
	var m meta
	err := yaml.UnmarshalStrict([]byte("annotations: {yes: a, 012: b}"), &m)
	fmt.Println("keys yes and 012 are", m.Annotations, err)
}
END

cat >want <<'END'
true is "true"
yes is "true"
on is "true"
y is "true"
~ is ""
1e3 is "1000"
012 is "10"
0x1F is "31"
1_000 is "1000"
1.10 is "1.1"
1.0 is "1"
16777217.5 is "1.6777218e+07"
1e21 is "1e+21"
12345678901234567890 is "12345678901234567890"
1:30 is "1:30"
2026-11-29 is "2026-11-29"
[a] is an error
keys yes and 012 are map[10:b true:a] <nil>
END

go run . >seen
cat seen
diff -u want seen || { echo "yaml-rewrites-annotations: it has changed" >&2; exit 1; }
