// Package floors holds the packages of this module to their floors: each may
// import only those below. It contains nothing but the test that does it.
package floors
