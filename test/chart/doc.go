// Package chart holds the chart, the examples and the documents to what they are for, without a
// cluster: they render, decode strictly, compile, and agree with the code. It
// contains nothing but tests.
package chart
