/** The command line of flatten. */
import { commandName } from '../command-name.ts'
import { commonHelp, type ValuesOf } from './common-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, required } from './parse.ts'

export const flattenOptions = {
  dir: { type: 'string', short: 'D' },
  'to-dir': { type: 'string' },
} as const

const flatten = commandName('flatten')

const usage = `usage: ${flatten} -D DIR --to-dir OUT

Makes one full dump of an incremental one: of the images that criu dump
--prev-images-dir left in DIR, and of those of the earlier rounds, to which the link
"parent" in DIR leads. criu restore -D accepts OUT, which has no parent; so does criu 4.1
if a newer criu made the dump. DIR and its parents are not changed.

  -D, --dir DIR        the directory of the last dump
      --to-dir OUT     write the images there; OUT appears when all of them are complete
${commonHelp}

${exitCodeHelp}

example, on the host that has the images:
  ${flatten} -D rounds/4 --to-dir full && criu restore -D full`

export const flattenCommand = { name: flatten, usage, options: flattenOptions }

/** `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readFlattenOptions(values: ValuesOf<typeof flattenOptions>, criuOptions: readonly string[]) {
  const from = required('--dir', values.dir, 'the directory of the last dump')
  const to = required('--to-dir', values['to-dir'], 'a directory that does not exist yet')
  atMostOne({ [flatten]: true, 'criu options': criuOptions.length > 0 })
  return { from, to }
}
