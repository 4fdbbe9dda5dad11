// Package chart holds the chart and the examples to what they are for, without a
// cluster: they render, decode strictly, compile, and agree with the code. It
// contains nothing but tests.
package chart
