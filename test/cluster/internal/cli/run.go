package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/test/cluster/internal/cluster"
	"github.com/kerf-project/kerf/test/cluster/internal/image"
)

func (a *app) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec -- COMMAND [ARGS...]",
		Short: "Run a command inside the cluster's namespaces, with KUBECONFIG set",
		Args:  cobra.MinimumNArgs(1),
	}
	a.nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.enter(cmd, args) }
	return cmd
}

func (a *app) tool(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " -- ARGS...",
		Short: "Run " + name + " inside the cluster's namespaces",
	}
	a.nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.enter(cmd, append([]string{name}, args...))
	}
	return cmd
}

// enter leaves signals to the command inside.
func (a *app) enter(cmd *cobra.Command, args []string) error {
	c, err := a.cluster()
	if err != nil {
		return err
	}
	return cluster.Exec(cmd.Context(), c, a.streams, args)
}

func (a *app) image() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image --tag NAME:TAG SRC:DST...",
		Short: "Make a container image of files of this machine and give it to the cluster's node",
		Long: `Make a container image of files of this machine and give it to the cluster's node.

The shared libraries that executables among the files need are added. A directory is added with all that is in it,
symbolic links in it as links. The same files always make the same image; an image that the node has already is not
imported again.`,
		Args: cobra.MinimumNArgs(1),
	}
	var spec image.Spec
	var output string
	a.nameFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&spec.Name, "tag", "", "name and tag of the image")
	flags.StringArrayVar(&spec.Entrypoint, "entrypoint", nil, "the program to run and, repeated, its first arguments")
	flags.StringArrayVar(&spec.Cmd, "cmd", nil, "default arguments, repeated")
	flags.StringArrayVar(&spec.Env, "env", nil, "environment variable NAME=VALUE, repeated")
	flags.StringVar(&spec.User, "user", "", "user to run as, a number")
	flags.StringVar(&spec.WorkingDir, "workdir", "", "working directory")
	flags.StringVar(&output, "output", "", "write the image archive to this file and leave the cluster alone")
	if err := cmd.MarkFlagRequired("tag"); err != nil {
		panic(err) // the flag is defined above
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		begin := time.Now()
		for _, arg := range args {
			mapping, err := image.ParseMapping(arg)
			if err != nil {
				return err
			}
			spec.Files = append(spec.Files, mapping)
		}
		made, err := image.New(spec)
		if err != nil {
			return err
		}
		done, err := a.deliver(cmd, made, output)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.streams.Out, "%s %s %s (%.1fs)\n", made.Name, made.Digest, done, time.Since(begin).Seconds())
		return err
	}
	return cmd
}

// deliver writes or imports the image, and says what it did.
func (a *app) deliver(cmd *cobra.Command, made *image.Image, output string) (string, error) {
	if output != "" {
		return "written to " + output, made.WriteFile(output)
	}
	c, err := a.cluster()
	if err != nil {
		return "", err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	imported, err := cluster.Import(ctx, c, made)
	if imported {
		return "imported", err
	}
	return "is there already", err
}
