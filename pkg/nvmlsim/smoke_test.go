package nvmlsim

import ("testing";"github.com/stretchr/testify/require")
func TestSmoke(t *testing.T){
 s,err:=Parse("4xH100-SXM5-80GB,2xL40S,state=/tmp/kt/node")
 require.NoError(t,err)
 _,err=Open(s,WithSMI("/tmp/kerf-sim-nvidia-smi")); require.NoError(t,err)
}
