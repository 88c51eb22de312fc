// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
)

const (
	annotationShieldsUp = annotationPrefix + "shields-up"
)

// featureAnnotation is an annotation that asks for something beyond an address. Its value
// is never empty, nor "false" where that is the value of a switch that is off.
type featureAnnotation struct {
	key string
	// set writes what the value asks for. Its error says what to write instead.
	set func(f *engine.Features, value string) error
}

// features are all of them.
func features() []featureAnnotation {
	return []featureAnnotation{
		{annotationIdentity, setIdentity},
		{annotationShieldsUp, on(func(f *engine.Features) *bool { return &f.ShieldsUp })},
	}
}

// featuresOf reads what a pod asks for beyond an address.
func featuresOf(sb *api.PodSandbox) (asked engine.Features, err error) {
	for _, feature := range features() {
		value := sb.GetAnnotations()[feature.key]
		if value == "" {
			continue
		}
		if err := feature.set(&asked, value); err != nil {
			return engine.Features{}, badAnnotation(feature.key, value, err.Error())
		}
	}
	return asked, nil
}

// on is a switch.
func on(field func(*engine.Features) *bool) func(*engine.Features, string) error {
	return func(f *engine.Features, value string) error {
		switch value {
		case "true":
			*field(f) = true
		case "false":
			*field(f) = false
		default:
			return errors.New(`say "true", or "false" or nothing to leave it off`)
		}
		return nil
	}
}
