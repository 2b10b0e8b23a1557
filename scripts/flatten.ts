#!/usr/bin/env node
import { flattenCommand, readFlattenOptions } from '../lib/cli/flatten-options.ts'
import { main } from '../lib/cli/main.ts'
import { flattenDirectory } from '../lib/commands/flatten.ts'

main(flattenCommand, async ({ values, rest, report, signal }) => {
  const { from, to } = readFlattenOptions(values, rest)
  await flattenDirectory(from, to, { report, signal })
})
