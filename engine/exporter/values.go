// SPDX-License-Identifier: BSD-3-Clause

package exporter

import (
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
)

// Values returns the values that a metric's label may have, nil where they are not
// known beforehand: names of pods, versions, DERP regions, reasons of tailscale.com.
func Values(f Family, label string) []string {
	return values[f.Name+"/"+label]
}

var values = map[string][]string{
	hooks.Name + "/event":          events,
	hooks.Name + "/result":         hookResults,
	nodes.Name + "/state":          {"Pending", "Running", "Stopped", "Leaving"},
	stages.Name + "/stage":         measure.Stages,
	late.Name + "/by":              {byList, byContainer},
	registrations.Name + "/kind":   measure.Registrations,
	deleted.Name + "/reason":       measure.Deletions,
	sweeps.Name + "/result":        measure.Results,
	apiCalls.Name + "/operation":   tailnet.Operations,
	apiCalls.Name + "/result":      tailnet.Results,
	podWritten.Name + "/file":      files,
	podBytes.Name + "/direction":   directions,
	podBytes.Name + "/path":        paths,
	podPackets.Name + "/direction": directions,
	podPackets.Name + "/path":      paths,
	podDrops.Name + "/direction":   directions,
	podHandshake.Name + "/of":      {oldest.GetValue(), newest.GetValue()},
}

// Values of the label that tells late attaches apart.
const (
	byList      = "list"
	byContainer = "container"
)

var (
	events      = []string{"Synchronize", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer"}
	hookResults = []string{OK, Failed, Timeout}

	directions = []string{measure.In.String(), measure.Out.String()}
	files      = []string{measure.RecordFile.String(), measure.StateFile.String(), measure.NetmapFile.String(), measure.ResolvConfFile.String()}
	paths      = []string{measure.Direct.String(), measure.DERP.String(), measure.PeerRelay.String(), measure.Local.String()}
)
