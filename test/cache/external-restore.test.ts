import { spawn } from 'node:child_process'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { runsScript } from '../../lib/criu/command-line.ts'
import { commandLine } from '../../lib/kernel/process.ts'
import { eventually, temporary } from '../support/run.ts'

const test = suite('cache/external-restore')

test('our action script is known by every path that leads to it, and no other is', async () => {
  const { path, remove } = temporary()
  const script = join(path, 'work', 'post-restore')
  mkdirSync(join(path, 'work'))
  writeFileSync(script, '')
  writeFileSync(join(path, 'post-restore'), '')
  symlinkSync('work', join(path, 'link'))
  for (const [words, isOurs] of [
    [['--action-script', script], true],
    [[`--action-script=${script}`], true],
    [['--action-script', 'work/post-restore'], true],
    [['--action-script', join(path, 'link', 'post-restore')], true],
    [['--action-script', 'link/../work/./post-restore'], true],
    [['--action-script', join(path, 'post-restore')], false],
    [['--action-script', join(path, 'nowhere', 'post-restore')], false],
    [['-D', 'link'], false],
  ] as const) {
    const criu = spawn('sh', ['-c', 'read word', 'criu', ...words], { cwd: path, stdio: ['pipe', 'ignore', 'ignore'] })
    const pid = criu.pid as number
    await eventually(() => commandLine(pid).includes('criu') || undefined, 'the command line')
    const found = runsScript(pid, script)
    criu.stdin.end()
    await new Promise((resolve) => criu.once('exit', resolve))
    assert.is(found, isOurs, words.join(' '))
  }
  assert.not(runsScript(2 ** 22, script))
  remove()
})

test.run()
