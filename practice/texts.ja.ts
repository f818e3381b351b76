/** Japanese: what the tools of the practice world say. */

import type { AnnouncedFailure, Texts } from "./texts.ts";

const REQUESTS = {
  model: "リクエスト",
  telegram: "Telegramのメッセージ",
  feishu: "Feishuのメッセージ",
};

/** For example 「次のリクエスト3件（キー2のみ）が失敗します：529」. */
function failure({ kind, server, count, seconds, key, model, chat }: AnnouncedFailure): string {
  const when = seconds === undefined ? "次の" : `${seconds}秒以内の`;
  const number = count === Infinity ? "すべて" : `${count}件`;
  const conditions = [key && `キー${key}`, model && `モデル${model}`, chat && `${chat}宛て`].filter(
    Boolean,
  );
  const only = conditions.length > 0 ? `（${conditions.join("、")}のみ）` : "";
  return `${when}${REQUESTS[server]}${number}${only}が失敗します：${kind}`;
}

const RUN_ONE = "npm start -- s04（s10までのどれでも可）を実行すると届きます。";

export const JAPANESE: Texts = {
  comma: "、",
  refused: {
    busy: ({ user, pid }) =>
      `${user}${pid === "0" ? "" : `（プロセス${pid}）`}が実行中で、練習用のワークスペースを使っています。` +
      "quitで終了するか、npm run practice -- killで強制終了してください。",
    nothingSent: () => "このチャットには、ボットからのメッセージがまだありません。",
    notTaken: ({ status, address }) =>
      `イベントが受け付けられませんでした：${address}の応答は` +
      `${status === "0" ? "ありません" : `${status}です`}。Feishuが再配信します。`,
  },
  start: {
    help: `npm start                        章を選ぶ
npm start -- s02                 第2章を実行
npm start -- s02 --lang ja       言語を指定（ja：日本語、zh：中国語、en：英語）
npm start -- s02 --fresh         ワークスペースを新しくコピーして実行
npm start -- s03 --context 1000  コンテキストウィンドウを1,000トークンにして実行
npm start -- s10 --serve         端末を使わず、サービスとして実行
npm start -- s04 --set 名前=値   設定を1つ変えて実行（--setは何度でも指定可）`,
    noLanguage: (given, known) => `「${given}」という言語はありません。選べる言語：${known}`,
    noSection: (given) => `「${given}」という章はありません。s01からs10まであります。`,
    notThere: (section, language, others, there) =>
      `${section}の${language}版はまだありません` +
      `${others.length > 0 ? `（${others.join("、")}版はあります）` : ""}。` +
      `${there.length > 0 ? `選べる章：${there.join("、")}` : ""}`,
    askLanguage: (names, first) => `言語（${names}）[${first}]：`,
    askSection: (first) => `章 [${first}]：`,
    missing: (sections) => `未収録：${sections}`,
    offline: [
      "オフラインの練習環境：決まったルールで動く練習用モデルが応答します。本物のモデルは使わず、料金もかかりません。",
      "本物のモデルを使うには、.env.ja.exampleを.envにコピーし、キーを書いてください。",
    ],
    phone: "2つ目の端末でaliceになる：npm run phone -- telegram alice",
    killed: (user, command) =>
      `${user}は強制終了されました。受け付けたメッセージはディスクに残っています。${command}で続きから処理します。`,
    freshWithKey:
      "（--freshは、キーのない練習環境のためのオプションです。ワークスペースは変わっていません。）",
    envInUtf16:
      ".envの文字コードがUTF-16のため、設定を読み込めません。UTF-8で保存し直してください。",
    badSetting: (given, known) =>
      `--setは「名前=値」の形で指定します（入力：「${given}」）。指定できる名前：${known}`,
  },
  phone: {
    help: `npm run phone -- telegram alice           aliceとしてボットにメッセージを送る
npm run phone -- telegram alice --group   aliceとしてグループfamilyに書く
                                          （ボットは@practice_botと/replyに返信）
npm run phone -- feishu bob               Feishuでの同じ操作
    --lang ja                             言語を指定

/photo [説明]  /album [説明]  /long（数通に分かれる長文）  /reply <本文>  quit`,
    bot: "ボット",
    typing: "ボットが入力中…",
    ended: "練習環境が終了しました。",
    waits: (user) =>
      user
        ? `（${user}にはチャネルがないため、メッセージは保留されます。${RUN_ONE}）`
        : `（実行中の章がないため、メッセージは保留されます。${RUN_ONE}）`,
  },
  rpc: {
    help: `npm run rpc -- status
npm run rpc -- send text="今何時？" channel=telegram peerId=1001
npm run rpc -- bindings.set agentId=sage matchKey=peerId matchValue=telegram:1002 priority=5
npm run rpc -- bindings.list | sessions.list | agents.list

接続先はnpm startで起動したゲートウェイ。別の接続先は--url=ws://host:port/?token=…で指定。
--timeout=60で待ち時間を10秒から60秒に変更、--lang=jaで言語を指定。`,
    noGateway: (user) =>
      `${user ? `${user}にはゲートウェイがありません` : "実行中の章がありません"}。npm start -- s05で起動できます。`,
    badParameter: (word) =>
      `「${word}」はパラメーターではありません。「名前=値」の形で指定してください。`,
    unreachable: (host, why) => `ゲートウェイ${host}に接続できません：${why}`,
    closed: (host, code) => `ゲートウェイ${host}が接続を閉じました（${code}）。`,
    gaveUp: (host, seconds) =>
      `ゲートウェイ${host}から${seconds}秒間応答がないため、待つのをやめます。` +
      "処理が続いている場合もあります。長く待つには--timeout=60を付けてください。",
    typing: "入力中…",
  },
  practice: {
    help: `npm run practice                         実行中の章と練習環境を表示
npm run practice -- fail 529             次のリクエストを失敗させる（--times 3：次の3件）
    --for 60s        1分間のすべてのリクエスト
    --key 2          2番目のキーのみ（--model モデル名：そのモデルのみ）
    --retry-after 7  429で指定する待ち時間（秒）
npm run practice -- fail telegram 429    ユーザー宛ての次のメッセージを失敗させる（feishuも可、--chat alice）
npm run practice -- fail off             失敗の設定を解除（fail telegram offも可）
npm run practice -- drop                 次のリクエストの接続を切断
npm run practice -- slow 5s              応答のイベントごとに5秒待つ（slow off：解除）
npm run practice -- log                  最近のリクエストを表示（--last 50：件数を指定）
npm run practice -- kill                 実行中の章をSIGKILLで強制終了
npm run practice -- stop                 練習環境と実行中の章を終了
    --lang ja        言語を指定`,
    kinds: `    （hang：1バイトも返さない、silent：ストリームが途中で途絶える、breakとbreak-tool：本文または
    ツール呼び出しの途中で切断、empty：空の応答、empty-body：本体のない応答）`,
    noCommand: (given) => `「${given}」というコマンドはありません。`,
    section: (user, pid) => `${user}が${pid ? `プロセス${pid}で` : ""}実行中です。`,
    noSection: "実行中の章はありません。npm startで実行できます。",
    world: (pid, model) => `練習環境はプロセス${pid}、モデルのアドレスは${model}です。`,
    byHand: "自分で起動した章から練習用モデルを使うための設定：",
    more: "変更できるものは、npm run practice -- --helpで表示できます。",
    killed: (user, pid) => `${user}（プロセス${pid}）をSIGKILLで強制終了しました。`,
    ended: (user) => `練習環境${user ? `と${user}` : ""}を終了しました。`,
    noWorld: "練習環境は動いていません。",
    noMoreFailures: "失敗の設定を解除しました。",
    slow: (seconds) =>
      seconds > 0 ? `イベントごとに${seconds}秒待ちます。` : "待ち時間を解除しました。",
    slowWhat: (given) => `「slow ${given}」は無効です。slow 5sまたはslow offと指定してください。`,
    noRequests: "リクエストはまだありません。",
    noFailure: (given, known) => `「${given}」という失敗はありません。指定できるもの：${known}`,
    oneFailure: (surplus) => `「${surplus}」が余分です。失敗は1つずつ指定してください。`,
    chatOption: "--chatを使えるのはtelegramとfeishuだけです。",
    modelOptions: "--keyと--modelを使えるのはモデルだけです。",
    failure,
  },
  log: {
    key: (number) => `キー${number}`,
    messages: (count) => `メッセージ${count}件`,
    stopped: "クライアントが中断",
    underWay: "処理中",
    cache: (cached, written, fresh) => `キャッシュ読み${cached}、書き${written}、対象外${fresh}`,
  },
  unknownOption: (given, help) => `${given}というオプションはありません。\n\n${help}`,
  noValue: (option, help) => `${option}の指定が正しくありません（値の過不足）。\n\n${help}`,
  wholeNumber: (option, given) => `${option}には正の整数を指定してください（入力：「${given}」）。`,
  duration: (option, given) =>
    `「${option} ${given}」は無効です。${option} 5sのように指定してください。`,
  worldDidNotStart: (log) => `練習環境を起動できませんでした。原因は${log}にあります。`,
  worldHangs: (pid) =>
    `練習環境（プロセス${pid}）が応答しません。kill -9 ${pid}で終了してください。`,
};
