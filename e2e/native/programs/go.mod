module tessera.dev/e2e/programs

go 1.24
