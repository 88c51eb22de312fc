// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"reflect"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
)

const (
	annotationDNS               = annotationPrefix + "dns"
	annotationEphemeral         = annotationPrefix + "ephemeral"
	annotationShieldsUp         = annotationPrefix + "shields-up"
	annotationAcceptRoutes      = annotationPrefix + "accept-routes"
	annotationExitNode          = annotationPrefix + "exit-node"
	annotationAdvertiseRoutes   = annotationPrefix + "advertise-routes"
	annotationAdvertiseExitNode = annotationPrefix + "advertise-exit-node"
)

// featureAnnotation is an annotation that asks for something beyond an address. Its value
// is never empty, nor "false" where that is the value of a switch that is off.
type featureAnnotation struct {
	key string
	// set writes what the value asks for. Its error says what to write instead.
	set func(f *engine.Features, value string) error
}

// features are all of them, in the order in which they are read.
func features() []featureAnnotation {
	return []featureAnnotation{
		{annotationDNS, on(func(f *engine.Features) *bool { return &f.DNS })},
		{annotationIdentity, setIdentity},
		{annotationShieldsUp, on(func(f *engine.Features) *bool { return &f.ShieldsUp })},
		{annotationSocket, on(func(f *engine.Features) *bool { return &f.Socket })},
		{annotationWait, setWait},
		{annotationWaitPolicy, setWaitPolicy},
		{annotationEphemeral, on(func(f *engine.Features) *bool { return &f.Ephemeral })},
		{annotationAcceptRoutes, on(func(f *engine.Features) *bool { return &f.AcceptRoutes })},
		{annotationExitNode, setExitNode},
		{annotationAdvertiseRoutes, setAdvertiseRoutes},
		{annotationAdvertiseExitNode, on(func(f *engine.Features) *bool { return &f.AdvertiseExitNode })},
	}
}

// featuresOf reads what a pod asks for beyond an address, and has by default. What
// it has by default nobody has to allow. To be without it has to be allowed where the
// policy lists what is: shields that are up, or an exit node, may be the
// administrator's will.
func featuresOf(sb *api.PodSandbox, g *grant) (asked engine.Features, err error) {
	for _, feature := range features() {
		value := sb.GetAnnotations()[feature.key]
		standard := g.gifts.features[strings.TrimPrefix(feature.key, annotationPrefix)]
		without, byDefault := asked, asked
		if standard != "" {
			if err := feature.set(&byDefault, standard); err != nil {
				return engine.Features{}, badAnnotation(feature.key, standard, err.Error())
			}
		}
		if value == "" || value == standard {
			asked = byDefault
			continue
		}
		if err := feature.set(&asked, value); err != nil {
			return engine.Features{}, badAnnotation(feature.key, value, err.Error())
		}
		needs := !reflect.DeepEqual(asked, without) || g.allow.features != nil
		if needs && !reflect.DeepEqual(asked, byDefault) {
			if err := g.checkFeature(feature.key, value); err != nil {
				return engine.Features{}, err
			}
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
