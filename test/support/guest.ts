/** Our programs, compiled, where a virtual machine can run them: there tsx would take seconds for each. */
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { classes, fixtures, root } from './run.ts'

/** Compiles into `share` and returns what runs the file `test/vm/NAME.ts` there. */
export function compiled(share: string): (name: string) => string[] {
  const out = join(share, 'ferry')
  mkdirSync(join(out, 'scripts', 'bin'), { recursive: true })
  const tsc = join(root, 'node_modules', '.bin', 'tsc')
  execFileSync(tsc, ['-p', join(root, 'test', 'vm', 'tsconfig.json'), '--outDir', out], { stdio: 'inherit' })
  spawnSync('javac', ['-d', join(out, basename(classes)), join(fixtures, 'Heap.java')], { stdio: 'inherit' })
  copyFileSync(join(root, 'package.json'), join(out, 'package.json'))
  for (const name of ['node_modules', 'fixtures', '.criu']) symlinkSync(join(root, name), join(out, name))
  for (const name of readdirSync(join(root, 'scripts', 'bin'))) {
    const path = join(out, 'scripts', 'bin', name)
    writeFileSync(path, `#!/bin/sh\nexec ${process.execPath} ${join(out, 'scripts', name)}.js "$@"\n`)
    chmodSync(path, 0o755)
  }
  return (name) => [process.execPath, join(out, 'test', 'vm', `${name}.js`)]
}
