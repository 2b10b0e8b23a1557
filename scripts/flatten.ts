#!/usr/bin/env node
import { exitCodeHelp } from '../lib/cli/exit-codes.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, required } from '../lib/cli/parse.ts'
import { flattenDirectory } from '../lib/commands/flatten.ts'

const usage = `usage: flatten -D DIR --to-dir OUT

Makes one full dump of an incremental one: of the images that criu dump
--prev-images-dir left in DIR, and of those of the earlier rounds, to which the
link "parent" in DIR leads. OUT is what criu restore -D accepts, without a parent,
also a criu 4.1 where a newer one made the dump. DIR and its parents stay as they are.

  -D, --dir DIR        the directory of the last dump
      --to-dir OUT     write the images there; OUT appears when all are complete
  -v, --verbose        say what happens        -q, --quiet    only errors
  -h, --help           this text               -V, --version

${exitCodeHelp}

example, on the host that has the images:
  flatten -D rounds/4 --to-dir full && criu restore -D full`

const options = {
  dir: { type: 'string', short: 'D' },
  'to-dir': { type: 'string' },
} as const

main({ name: 'flatten', usage, options }, async ({ values, rest, report, signal }) => {
  const from = required('--dir', values.dir, 'the directory of the last dump')
  const to = required('--to-dir', values['to-dir'], 'a directory that does not exist yet')
  atMostOne({ flatten: true, 'criu options': rest.length > 0 })
  await flattenDirectory(from, to, { report, signal })
})
