package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/scaling"
)

type hintFlags struct {
	series, hint, class, output string
	minimum, maximum            int32
	interval                    time.Duration
	model                       scaling.Model
}

func newHintCommand() *cobra.Command {
	f := hintFlags{}
	cmd := &cobra.Command{
		Use:   "hint",
		Short: "Try on a recorded series what a scaling hint would have said",
		Long: `Try on a recorded series what a scaling hint would have said, to tune thresholds before trusting them. It asks no cluster.

The series is CSV with the header time,utilization,replicas: the mean utilization in percent, empty where there was no data,
and how many replicas there were. The replay follows each hint, and spreads the recorded load over the replicas that it has.`,
		Example: `  kerf hint -f day.csv --class=Realtime --max=8
  kerf hint -f day.csv --hint=hint.yaml --output=svg > day.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runHint(f, cmd.InOrStdin(), cmd.OutOrStdout()) },
	}
	s := cmd.Flags()
	s.StringVarP(&f.series, "filename", "f", "", "the recorded series; - is the standard input")
	s.StringVar(&f.hint, "hint", "", "file with a GPUScalingHint, instead of --class, --min and --max")
	s.StringVar(&f.class, "class", string(v1alpha1.ClassConservative), "Realtime, Batch, Conversational or Conservative")
	s.Int32Var(&f.minimum, "min", 1, "the least replicas")
	s.Int32Var(&f.maximum, "max", 8, "the most replicas")
	s.DurationVar(&f.interval, "interval", scaling.DefaultInterval, "the interval in which the metrics are collected")
	s.DurationVar(&f.model.StartUp, "startup", time.Minute, "how long a new replica takes until it works")
	s.DurationVar(&f.model.Delay, "delay", 0, "the age of a measurement when it is read")
	s.StringVarP(&f.output, "output", "o", "table", "table or svg")
	_ = cmd.MarkFlagRequired("filename")
	for _, name := range []string{"class", "min", "max"} {
		cmd.MarkFlagsMutuallyExclusive("hint", name)
	}
	return cmd
}

func runHint(f hintFlags, in io.Reader, out io.Writer) error {
	if f.output != "table" && f.output != "svg" {
		return fmt.Errorf("--output=%s: expected table or svg", f.output)
	}
	spec, err := f.spec()
	if err != nil {
		return err
	}
	if f.series != "-" {
		file, err := os.Open(f.series)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	samples, err := scaling.ReadSamples(in)
	if err != nil {
		return err
	}
	policy := scaling.PolicyOf(spec, f.interval)
	steps := f.model.Replay(policy, samples)
	if f.output == "svg" {
		return scaling.WriteSVG(out, policy, steps)
	}
	return scaling.WriteTable(out, steps)
}

func (f hintFlags) spec() (*v1alpha1.GPUScalingHintSpec, error) {
	spec := v1alpha1.GPUScalingHintSpec{Class: v1alpha1.Class(f.class), MinReplicas: f.minimum, MaxReplicas: f.maximum, FallbackReplicas: 3}
	if f.hint != "" {
		data, err := os.ReadFile(f.hint)
		if err != nil {
			return nil, err
		}
		hint := v1alpha1.GPUScalingHint{Spec: v1alpha1.GPUScalingHintSpec{MinReplicas: 1, FallbackReplicas: 3}}
		if err := yaml.UnmarshalStrict(data, &hint); err != nil {
			return nil, fmt.Errorf("%s: %w", f.hint, err)
		}
		spec = hint.Spec
	}
	return &spec, scaling.Check(&spec)
}
