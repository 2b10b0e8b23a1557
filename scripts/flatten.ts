#!/usr/bin/env node
import { flattenOptions, flattenUsage, readFlattenOptions } from '../lib/cli/flatten-options.ts'
import { main } from '../lib/cli/main.ts'
import { commandName } from '../lib/command-name.ts'
import { flattenDirectory } from '../lib/commands/flatten.ts'

const command = { name: commandName('flatten'), usage: flattenUsage, options: flattenOptions }

main(command, async ({ values, rest, report, signal }) => {
  const { from, to } = readFlattenOptions(values, rest)
  await flattenDirectory(from, to, { report, signal })
})
