package main

// finitModule is finit_module(2), which package syscall does not know.
const finitModule = 313
