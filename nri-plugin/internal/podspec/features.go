// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"errors"
	"maps"
	"reflect"
	"strconv"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
)

const (
	AnnotationDNS               = AnnotationPrefix + "dns"
	AnnotationEphemeral         = AnnotationPrefix + "ephemeral"
	annotationShieldsUp         = AnnotationPrefix + "shields-up"
	annotationAcceptRoutes      = AnnotationPrefix + "accept-routes"
	annotationExitNode          = AnnotationPrefix + "exit-node"
	annotationAdvertiseRoutes   = AnnotationPrefix + "advertise-routes"
	annotationAdvertiseExitNode = AnnotationPrefix + "advertise-exit-node"
)

// featureAnnotation is an annotation that asks for something beyond an address. Its value
// is never empty, nor "false" where that is the value of a switch that is off.
type featureAnnotation struct {
	key string
	// set writes what the value asks for. Its error says what to write instead.
	set func(f *engine.Features, value string) error
}

// features are all feature annotations, in the order in which they are read.
func features() []featureAnnotation {
	return []featureAnnotation{
		{AnnotationDNS, on(func(f *engine.Features) *bool { return &f.DNS })},
		{annotationIdentity, setIdentity},
		{annotationShieldsUp, on(func(f *engine.Features) *bool { return &f.ShieldsUp })},
		{AnnotationSocket, on(func(f *engine.Features) *bool { return &f.Socket })},
		{AnnotationWait, setWait},
		{AnnotationWaitPolicy, setWaitPolicy},
		{AnnotationEphemeral, on(func(f *engine.Features) *bool { return &f.Ephemeral })},
		{annotationAcceptRoutes, on(func(f *engine.Features) *bool { return &f.AcceptRoutes })},
		{annotationExitNode, setExitNode},
		{annotationAdvertiseRoutes, setAdvertiseRoutes},
		{annotationAdvertiseExitNode, on(func(f *engine.Features) *bool { return &f.AdvertiseExitNode })},
	}
}

// featuresOf reads what a pod asks for beyond an address, and has by default. What
// it has by default needs no permission. To turn that off needs permission if the policy
// has a list of allowed features: shields-up or an exit node may be what the
// administrator wants.
func featuresOf(sb *api.PodSandbox, g *grant) (asked engine.Features, err error) {
	for _, feature := range features() {
		value := sb.GetAnnotations()[feature.key]
		standard := g.gifts.features[strings.TrimPrefix(feature.key, AnnotationPrefix)]
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

// on reads the value of a switch.
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

const AnnotationSocket = AnnotationPrefix + "socket"

// Values returns a pod's features as annotations: values by keys without
// the prefix. The profile is not among them, which is no feature to a user.
func Values(f engine.Features) map[string]string {
	var routes []string
	for _, p := range f.AdvertiseRoutes {
		routes = append(routes, p.String())
	}
	values := map[string]string{annotationExitNode: f.ExitNode, annotationAdvertiseRoutes: strings.Join(routes, ",")}
	for key, on := range map[string]bool{
		AnnotationDNS: f.DNS, annotationShieldsUp: f.ShieldsUp, AnnotationSocket: f.Socket, AnnotationEphemeral: f.Ephemeral,
		annotationAcceptRoutes: f.AcceptRoutes, annotationAdvertiseExitNode: f.AdvertiseExitNode,
	} {
		if on {
			values[key] = strconv.FormatBool(on)
		}
	}
	if f.Workload {
		values[annotationIdentity] = "workload"
	}
	if f.Wait > 0 {
		values[AnnotationWait], values[AnnotationWaitPolicy] = f.Wait.String(), "start"
		if f.WaitFails {
			values[AnnotationWaitPolicy] = "fail"
		}
	}
	maps.DeleteFunc(values, func(_, v string) bool { return v == "" })
	short := make(map[string]string, len(values))
	for key, v := range values {
		short[strings.TrimPrefix(key, AnnotationPrefix)] = v
	}
	return short
}
