/** What the tests are run with, and in which order. */
import { existsSync, readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { root } from './run.ts'

export interface Task {
  /** From `test/`. */
  file: string
  pass: string
  env: { FERRY_CRIU?: string; FERRY_NO_SPLICE?: string }
}

const criu = (suite: string): string => join(root, '.criu', suite, 'criu')
const live = /^criu\/(?!faults|page-port)/
const withoutSplice = /^(stream|role|scripts)\/(?!soak|daemon|build|flatten|bench|connections)/
const passes: (Omit<Task, 'file'> & { files: RegExp })[] = [
  { pass: 'newest CRIU', files: /./, env: {} },
  { pass: 'no splice, no CRIU', files: withoutSplice, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: 'none' } },
  { pass: 'no CRIU', files: /^criu/, env: { FERRY_CRIU: 'none' } },
  { pass: 'no splice, CRIU 4.2', files: live, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.2', files: /^criu\/(handover|loads)/, env: { FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.1', files: live, env: { FERRY_CRIU: criu('trixie') } },
]

/** What goes first: the faults mostly wait for time-outs, and the virtual machine beside them takes all that the processors have. */
const early = ['criu/faults.test.ts', 'vm/vm.test.ts', 'criu/faults-ends.test.ts']
const place = ({ file }: Task): number => [...early, file].indexOf(file)

/** All files with one of those words in their names, or all files at all, once for each pass. */
export function tasks(words: readonly string[]): Task[] {
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
    .sort()
  const all = passes.flatMap(({ pass, files: which, env }) => {
    const { FERRY_CRIU: program = 'none' } = env
    if (program === 'none' || existsSync(program))
      return files.filter((file) => which.test(file)).map((file) => ({ file, pass, env }))
    console.log(`skipped: ${relative(root, program)} could not be fetched`)
    return []
  })
  return all.sort((a, b) => place(a) - place(b))
}
